// build-screen.ts: a build on a terminal: a line for each instruction with its time, the last output of those that go on
// below them, all of it drawn anew in place. What is drawn is a value; the terminal only gets the difference of height.
import { type BuildProgress, failureText } from '@berth/contracts'

/** Lines of output that are shown of an instruction that goes on, and of one that has failed. */
const TAIL = 6
const FAILED_TAIL = 20
const EVERY_MS = 100

interface Line {
  readonly name: string
  readonly beganMs: number
  state: 'running' | 'cached' | 'done' | 'failed'
  ms: number
  /** Whole lines of its last output, and what comes after the last line break. */
  tail: string[]
  rest: string
}

/** What is shown of a build. */
export class BuildView {
  readonly #lines = new Map<string, Line>()
  readonly #warnings: string[] = []
  readonly #failures: string[] = []

  constructor(private readonly startedMs: number) {}

  add(step: BuildProgress, nowMs: number): void {
    switch (step.step) {
      case 'begin':
        this.#begin(`#${step.vertex}`, step.name, nowMs)
        return
      case 'cached':
        this.#end(`#${step.vertex}`, 'cached', 0)
        return
      case 'output':
        this.#output(`#${step.vertex}`, step.data)
        return
      case 'end':
        this.#end(`#${step.vertex}`, step.error === null ? 'done' : 'failed', step.ms)
        return
      case 'pull':
        if (!this.#lines.has(step.reference)) this.#begin(step.reference, `pull ${step.reference}`, nowMs)
        return
      case 'pulled':
        this.#end(step.reference, 'done', nowMs - (this.#lines.get(step.reference)?.beganMs ?? nowMs))
        return
      case 'warning':
        this.#warnings.push(step.line === null ? step.message : `line ${step.line}: ${step.message}`)
        return
      case 'failed':
        this.#failures.push(`berth: ${failureText(step)}`)
        return
      default:
    }
  }

  /** The lines to show, at most as many as there is room for, the last ones of a build that is longer. */
  frame(nowMs: number, columns: number, rows: number, over: boolean): readonly string[] {
    const lines = [...this.#lines.values()]
    const ended = lines.filter(({ state }) => state !== 'running').length
    const count = this.#warnings.length
    const warned = count > 0 ? `, ${count} ${count === 1 ? 'warning' : 'warnings'}` : ''
    const head = `[+] Building ${seconds(nowMs - this.startedMs)} (${ended}/${lines.length}${over ? ') FINISHED' : ')'}${warned}`
    const shown = lines.flatMap((line) => [
      lineOf(line, nowMs, columns),
      ...tailOf(line).map((text) => fit(` => # ${text}`, columns)),
    ])
    // What is told in the end may scroll: nothing is drawn over it.
    const told = over ? [...this.#warnings.map((text) => ` ! ${text}`), ...this.#failures].map(printable) : []
    return [fit(head, columns), ...shown.slice(-Math.max(1, rows - 2)), ...told]
  }

  #begin(key: string, name: string, beganMs: number): void {
    this.#lines.set(key, { name: oneLine(name), beganMs, state: 'running', ms: 0, tail: [], rest: '' })
  }

  #end(key: string, state: Line['state'], ms: number): void {
    const line = this.#lines.get(key)
    if (!line) return
    if (line.rest !== '') this.#output(key, '\n')
    Object.assign(line, { state, ms, tail: state === 'failed' ? line.tail : [] })
  }

  #output(key: string, data: string): void {
    const line = this.#lines.get(key)
    if (!line) return
    const texts = (line.rest + data).split('\n')
    line.rest = (texts.pop() ?? '').slice(-1000)
    line.tail = [...line.tail, ...texts.map(lastWritten)].slice(-FAILED_TAIL)
  }
}

function tailOf({ state, tail, rest }: Line): readonly string[] {
  if (state !== 'running') return state === 'failed' ? tail : []
  // Progress is a line that has no end until it is done.
  const begun = lastWritten(rest)
  return [...tail, ...(begun === '' ? [] : [begun])].slice(-TAIL)
}

/** What a terminal would show of a line that was written again and again from its start, as progress is. */
const lastWritten = (text: string): string => printable(text.replace(/\r+$/, '').replace(/^.*\r/s, ''))

function lineOf({ name, beganMs, state, ms }: Line, nowMs: number, columns: number): string {
  const time = seconds(state === 'running' ? nowMs - beganMs : ms)
  const mark = { running: '', cached: 'CACHED ', done: '', failed: 'ERROR ' }[state]
  const text = fit(` => ${mark}${name}`, columns - time.length - 1)
  return `${text.padEnd(columns - time.length - 1)} ${time}`
}

const seconds = (ms: number): string => `${(Math.max(0, ms) / 1000).toFixed(1)}s`
const oneLine = (text: string): string => printable(text.replace(/\s+/g, ' '))
/** Without what would move the cursor: escape sequences (ECMA-48, 5.4) and control characters. */
const printable = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  text.replace(/\u001b\[[0-9;?]*[ -/]*[@-~]/g, '').replace(/[\u0000-\u001f\u007f-\u009f]/g, '')
const fit = (text: string, columns: number): string =>
  text.length <= columns ? text : `${text.slice(0, Math.max(0, columns - 1))}…`

interface Terminal {
  readonly columns: number
  readonly rows: number
  write(text: string): unknown
}

/** Draws a build on a terminal until it is ended. */
export class BuildScreen {
  readonly #view = new BuildView(Date.now())
  readonly #timer: NodeJS.Timeout
  #drawn = 0

  constructor(private readonly terminal: Terminal) {
    this.#timer = setInterval(() => this.#draw(false), EVERY_MS)
  }

  add(step: BuildProgress): void {
    this.#view.add(step, Date.now())
  }

  /** Draws it as it is in the end, and leaves it there. */
  end(): void {
    clearInterval(this.#timer)
    this.#draw(true)
  }

  #draw(over: boolean): void {
    const lines = this.#view.frame(Date.now(), this.terminal.columns || 80, this.terminal.rows || 24, over)
    // Up to where it began, and everything from there on is taken away (ECMA-48: CUU, ED).
    const back = this.#drawn > 0 ? `\u001b[${this.#drawn}A\r\u001b[J` : ''
    const text = lines.map((line) => `${line}\n`).join('')
    // What is wider than it has characters must not wrap (DECAWM): there would be more lines than are taken away again.
    this.terminal.write(over ? back + text : `\u001b[?7l${back}${text}\u001b[?7h`)
    this.#drawn = lines.length
  }
}
