// build-text.ts: the stream of a build as text, a line for each thing, as `docker build --progress=plain` writes it:
//
//     #3 [builder 2/5] RUN npm ci
//     #3 0.412 added 57 packages
//     #3 DONE 1.2s
//
// Lines of instructions that run at the same time are mixed; the number says whose a line is. The API keeps this as the log
// of a build, and `berth build --progress=plain` prints it.
import type { BuildProgress } from './build.js'

/** Longest line of output that is waited for, in characters; a longer one is broken. */
const MAX_LINE = 8192

interface Vertex {
  readonly name: string
  readonly beganMs: number
  /** Output since its last line break, or since the last return to the beginning of the line. */
  rest: string
  /** Of this line all was told when its writer returned to its beginning: a line break that comes now ends nothing. */
  told: boolean
}

type Told<S extends BuildProgress['step']> = Extract<BuildProgress, { readonly step: S }>

export class BuildText {
  readonly #vertices = new Map<number, Vertex>()
  /** State of each layer that is pulled, so that only changes are told. */
  readonly #layers = new Map<string, string>()

  /** What a step adds to the text: whole lines, or nothing. */
  add(step: BuildProgress): string {
    switch (step.step) {
      case 'created':
        return `build ${step.build}\n`
      case 'pull':
        return this.#pulled(step)
      case 'pulled':
        return `pulled ${step.reference} (${step.digest})\n`
      case 'begin':
        this.#vertices.set(step.vertex, { name: step.name, beganMs: Date.parse(step.at), rest: '', told: false })
        return `#${step.vertex} ${oneLine(step.name)}\n`
      case 'cached':
        this.#vertices.delete(step.vertex)
        return `#${step.vertex} CACHED\n`
      case 'output':
        return this.#output(step)
      case 'end':
        return this.#ended(step)
      case 'warning':
        return `WARNING: ${oneLine(step.message)}${step.line === null ? '' : ` (line ${step.line})`}\n`
      case 'done':
        return [step.image.digest, ...step.build.tags.map((tag) => `naming ${tag}`)].map((line) => `${line}\n`).join('')
      case 'failed':
        return `ERROR: ${failureText(step)}\n`
    }
  }

  #pulled({ reference, layer, state }: Told<'pull'>): string {
    if (this.#layers.get(layer) === state) return ''
    this.#layers.set(layer, state)
    return `pull ${reference} ${layer.slice('sha256:'.length, 19)} ${state}\n`
  }

  #output({ vertex, data, at }: Told<'output'>): string {
    const known = this.#vertices.get(vertex)
    if (!known) return ''
    const ended = data.split('\n')
    const begun = ended.pop() ?? ''
    const lines = ended.flatMap((text) => endLine(known, text))
    lines.push(...goOn(known, begun))
    if (known.rest.length > MAX_LINE) {
      lines.push(known.rest)
      known.rest = ''
    }
    return lines.map((line) => lineOf(vertex, known, at, line)).join('')
  }

  #ended({ vertex, at, ms, error }: Told<'end'>): string {
    const known = this.#vertices.get(vertex)
    this.#vertices.delete(vertex)
    const rest = known && known.rest !== '' ? lineOf(vertex, known, at, known.rest) : ''
    const end = error === null ? `DONE ${seconds(ms)}s` : `ERROR: ${oneLine(error)}`
    return `${rest}#${vertex} ${end}\n`
  }
}

/**
 * Goes on with a line. Progress is written over and over from its beginning: each time is a line here.
 * @returns what is whole of it
 */
function goOn(of: Vertex, text: string): string[] {
  const pieces = (of.rest + text).split('\r')
  of.rest = pieces.pop() ?? ''
  const whole = pieces.filter((piece) => piece !== '')
  of.told = of.rest === '' && (of.told || whole.length > 0)
  return whole
}

function endLine(of: Vertex, text: string): string[] {
  const lines = goOn(of, text)
  if (!of.told) lines.push(of.rest)
  Object.assign(of, { rest: '', told: false })
  return lines
}

/** What failed, where in the Dockerfile, in one line. */
export const failureText = ({ message, line, instruction }: Omit<Told<'failed'>, 'step' | 'code'>): string => {
  const where = line === null ? '' : `Dockerfile:${line}: ${instruction === null ? '' : `${oneLine(instruction)}: `}`
  // For those who show nothing else it says so itself.
  const what = line === null ? message : message.replace(/^line \d+(, \w+)?: /, '')
  return `${where}${oneLine(what)}`
}

const lineOf = (vertex: number, { beganMs }: Vertex, at: string, line: string): string =>
  `#${vertex} ${(Math.max(0, Date.parse(at) - beganMs) / 1000).toFixed(3)} ${line}\n`

/** Seconds with one digit behind the point. */
const seconds = (ms: number): string => (ms / 1000).toFixed(1)

const oneLine = (text: string): string => text.replace(/\s*\n\s*/g, ' ')
