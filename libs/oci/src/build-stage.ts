// build-stage.ts: what the instructions of a stage come to, one after the other: steps with every value filled in, and
// the image's configuration after each. The rules are those of BuildKit's dockerfile2llb.
import { signalNumber } from '@berth/contracts'
import {
  type BuildOp,
  type CopyOp,
  type CopySource,
  type PlannedStage,
  type PlanOptions,
  plannedSource,
  proxyNames,
  type RunMount,
  type RunOp,
} from './build-plan.js'
import {
  checkTriggers,
  type Dockerfile,
  type DockerfileWarning,
  type Instruction,
  parseTriggers,
} from './dockerfile.js'
import type { Command, CommandLine } from './dockerfile-commands.js'
import { invalidDockerfile, type Place } from './dockerfile-error.js'
import { type Mount, mountValues } from './dockerfile-mounts.js'
import {
  healthcheck,
  healthText,
  isMode,
  isRemote,
  MAX_PORTS,
  portsOf,
  quoted,
  refusedRemote,
  resolved,
  withHeredocs,
} from './instruction-values.js'
import type { ContainerConfig } from './manifest.js'
import { type Budget, processWord, type WordOptions } from './shell-words.js'

/** What a stage begins with: the configuration of its base, and what a base that is a stage of the same file knows. */
export interface StageBase {
  readonly config: ContainerConfig
  readonly scope?: StageScope
}

/** Variables at the end of a stage; those that begin with it have them too. */
export interface StageScope {
  readonly variables: ReadonlyMap<string, string>
  readonly args: ReadonlyMap<string, string | null>
}

export interface EvaluatedStage {
  readonly ops: readonly BuildOp[]
  /** With `scope`, the base of a stage that begins with this one. */
  readonly config: ContainerConfig
  readonly scope: StageScope
  /** As MAINTAINER says. */
  readonly author: string | null
  readonly warnings: readonly DockerfileWarning[]
}

const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const defaultShell = ['/bin/sh', '-c']
/** Longest argument or variable of a command, in bytes (execve(2), MAX_ARG_STRLEN, with the zero byte at its end). */
const MAX_ARGUMENT = 128 * 1024 - 1
/** Longest text that history has of a step. */
const MAX_TEXT = 16 * 1024
const MAX_WARNINGS = 100

/**
 * The steps of a stage. Triggers of its base (`OnBuild`) come first.
 * @param base `{ config: {} }` for scratch, an image's configuration, or what evaluating its base came to
 * @throws Failure dockerfile_invalid
 */
export function evaluateStage(
  file: Dockerfile,
  stage: PlannedStage,
  base: StageBase,
  options: PlanOptions,
): EvaluatedStage {
  const triggers = parseTriggers(base.config.OnBuild ?? [], stage.line)
  const evaluation = new Evaluation(file, stage, base, options)
  for (const trigger of triggers) evaluation.take(trigger, 'ONBUILD ')
  for (const instruction of stage.instructions) evaluation.take(instruction)
  return evaluation.end()
}

class Evaluation {
  private readonly budget: Budget
  private readonly given: ReadonlyMap<string, string>
  /** Of ENV and ARG, whichever was last. */
  private readonly variables: Map<string, string>
  private readonly args: Map<string, string | null>
  private readonly ops: BuildOp[] = []
  private readonly warnings: DockerfileWarning[] = []
  private config: ContainerConfig
  private author: string | null = null
  private hasCommand = false
  private prefix = ''
  /** `env` of commands, until a variable changes. */
  private env: Readonly<Record<string, string>> | undefined

  constructor(
    private readonly file: Dockerfile,
    private readonly stage: PlannedStage,
    base: StageBase,
    options: PlanOptions,
  ) {
    this.budget = stage.shared.budget
    this.given = new Map(Object.entries(options.args))
    const env = base.config.Env ?? []
    const hasPath = env.some((variable) => variable.startsWith('PATH='))
    const { OnBuild: _, WorkingDir: directory, ...config } = base.config
    this.config = {
      ...config,
      ...(directory || stage.from.kind === 'scratch' ? { WorkingDir: resolved('/', directory ?? '/', false) } : {}),
      Env: hasPath ? env : [...env, `PATH=${defaultPath}`],
    }
    this.variables = new Map([
      ...(this.config.Env ?? []).map((variable): [string, string] => {
        const at = variable.indexOf('=')
        return at < 0 ? [variable, ''] : [variable.slice(0, at), variable.slice(at + 1)]
      }),
      // What an argument hides of the environment stays hidden.
      ...(base.scope?.variables ?? []),
    ])
    this.args = new Map(base.scope?.args)
    this.budget.kept(this.variables.size + this.args.size, { line: stage.line })
  }

  end(): EvaluatedStage {
    const { ops, config, author, warnings, variables, args } = this
    return { ops, config, author, warnings, scope: { variables, args } }
  }

  /** @param prefix of the names of its steps */
  take(at: Instruction, prefix = ''): void {
    const { command } = at
    this.prefix = prefix
    switch (command.kind) {
      case 'from':
        throw invalidDockerfile('FROM begins another stage', at)
      case 'arg':
        this.takeArg(command, at)
        break
      case 'env':
        this.takeEnv(command, at)
        break
      case 'label':
        this.takeLabel(command, at)
        break
      case 'run':
        this.takeRun(command, at)
        break
      case 'copy':
        this.takeCopy(command, at)
        break
      case 'workdir': {
        const path = resolved(this.workingDir(), this.expand(command.value, at), false)
        this.change({ WorkingDir: path })
        this.push(at, `WORKDIR ${path}`, path === '/' ? { kind: 'config' } : { kind: 'workdir', path })
        break
      }
      case 'user': {
        const user = this.expand(command.value, at)
        this.change({ User: user })
        this.push(at, `USER ${user}`)
        break
      }
      case 'volume': {
        const paths = command.words.map((word) => this.expand(word, at))
        if (paths.includes('')) throw invalidDockerfile('a path cannot be empty', at)
        this.change({ Volumes: { ...this.config.Volumes, ...names(paths) } }, at)
        this.push(at, `VOLUME [${paths.join(' ')}]`)
        break
      }
      case 'expose':
        this.takeExpose(command.words, at)
        break
      case 'shell':
        this.change({ Shell: [...command.words] })
        this.push(at, `SHELL [${command.words.join(' ')}]`)
        break
      case 'stopsignal': {
        const signal = this.expand(command.value, at)
        if (signalNumber(signal) === undefined && !/^(SIG)?RTM(IN(\+\d{1,2})?|AX(-\d{1,2})?)$/i.test(signal))
          throw invalidDockerfile(`${JSON.stringify(signal)} is no signal`, at)
        this.change({ StopSignal: signal })
        this.push(at, `STOPSIGNAL ${signal}`)
        break
      }
      case 'cmd':
        this.hasCommand = true
        this.change({ Cmd: this.argv(command.line), ArgsEscaped: true })
        this.push(at, `CMD ${quoted(this.config.Cmd)}`)
        break
      case 'entrypoint': {
        const words = this.argv(command.line)
        // The command of the base was for its own entrypoint.
        this.change({ Entrypoint: words.length > 0 ? words : null, ...(this.hasCommand ? {} : { Cmd: null }) })
        this.push(at, `ENTRYPOINT ${quoted(words)}`)
        break
      }
      case 'healthcheck':
        this.change({ Healthcheck: healthcheck(command.health) })
        this.push(at, `HEALTHCHECK ${healthText(command.health)}`)
        break
      case 'onbuild':
        this.change({ OnBuild: [...(this.config.OnBuild ?? []), command.trigger] }, at)
        checkTriggers(this.config.OnBuild ?? [], at)
        // History has nothing of it, as with BuildKit.
        break
      case 'maintainer':
        this.author = command.value
        this.warn('MAINTAINER is deprecated: use LABEL org.opencontainers.image.authors', at)
        this.push(at, `MAINTAINER ${command.value}`)
        break
    }
  }

  private expand(word: string, at: Place, options: Partial<WordOptions> = {}): string {
    return this.words(word, at, options).word
  }

  private words(word: string, at: Place, options: Partial<WordOptions> = {}) {
    const { escape: escapeCharacter } = this.file
    const found = processWord(word, this.variables, { escape: escapeCharacter, budget: this.budget, at, ...options })
    for (const name of found.unset)
      if (/^[A-Za-z_]/.test(name) && !this.args.has(name)) this.warn(`the variable $${name} is not set`, at)
    return found
  }

  private warn(message: string, { line }: Place): void {
    if (this.warnings.length < MAX_WARNINGS) this.warnings.push({ message, line })
  }

  /** @param at of an instruction that adds to what there is */
  private change(by: ContainerConfig, at?: Place): void {
    if (at) for (const value of Object.values(by)) this.budget.kept(Object.keys(value ?? {}).length, at)
    this.config = { ...this.config, ...by }
  }

  private push(at: Instruction, text: string, op: OpBody = { kind: 'config' }): void {
    this.budget.made(text.length, at)
    const shown = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text
    const name = `${this.prefix}${at.keyword}${at.text.slice(at.text.search(/\s|$/))}`
    this.ops.push({ line: at.line, name: name.slice(0, 4096), text: shown, config: this.config, ...op })
  }

  private setVariable(name: string, value: string, at: Place): void {
    if (name === '' || name.includes('=')) throw invalidDockerfile(`${JSON.stringify(name)} is no name`, at)
    if (Buffer.byteLength(name) + Buffer.byteLength(value) + 1 > MAX_ARGUMENT)
      throw invalidDockerfile(`${name.slice(0, 100)} is longer than ${MAX_ARGUMENT} bytes`, at)
    this.variables.set(name, value)
    this.env = undefined
  }

  private workingDir(): string {
    return this.config.WorkingDir || '/'
  }

  private argv(line: CommandLine): string[] {
    if ('words' in line) return [...line.words]
    const shell = this.config.Shell ?? []
    return [...(shell.length > 0 ? shell : defaultShell), line.shell]
  }

  private takeArg({ args }: Command & { kind: 'arg' }, at: Instruction): void {
    const shown = args.map(([name, written]) => {
      const value =
        this.given.get(name) ??
        (written === null ? this.stage.shared.globals.get(name) : this.expand(written, at)) ??
        null
      if (written !== null) this.warnOfSecret(name, at)
      this.args.set(name, value)
      if (value !== null) this.setVariable(name, value, at)
      return value === null ? name : `${name}=${value}`
    })
    this.push(at, `ARG ${shown.join(' ')}`)
  }

  private takeEnv({ pairs }: Command & { kind: 'env' | 'label' }, at: Instruction): void {
    // All of a line are filled in with what was before it.
    const filled = pairs.map(([name, value]) => [this.expand(name, at), this.expand(value, at)] as const)
    const env = new Map((this.config.Env ?? []).map((variable) => [variable.replace(/=.*$/s, ''), variable]))
    for (const [name, value] of filled) {
      this.warnOfSecret(name, at)
      this.setVariable(name, value, at)
      env.set(name, `${name}=${value}`)
    }
    this.change({ Env: [...env.values()] }, at)
    this.push(at, `ENV ${filled.map(([name, value]) => `${name}=${value}`).join(' ')}`)
  }

  /** What is said here is read by everybody who has the image. */
  private warnOfSecret(name: string, at: Instruction): void {
    const isSecret = /(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)/i.test(name)
    if (isSecret && !/(?:_|^)public(?:_|$)/i.test(name))
      this.warn(`${at.keyword} ${name} is readable in the image: use RUN --mount=type=secret for secrets`, at)
  }

  private takeLabel({ pairs }: Command & { kind: 'env' | 'label' }, at: Instruction): void {
    const filled = pairs.map(([name, value]) => [this.expand(name, at), this.expand(value, at)] as const)
    if (filled.some(([name]) => name === '')) throw invalidDockerfile('names cannot be empty', at)
    this.change({ Labels: { ...this.config.Labels, ...Object.fromEntries(filled) } }, at)
    this.push(at, `LABEL ${filled.map(([name, value]) => `${name}=${value}`).join(' ')}`)
  }

  private takeExpose(words: readonly string[], at: Instruction): void {
    const ports: string[] = []
    for (const word of words.flatMap((word) => this.words(word, at).words)) {
      ports.push(...portsOf(word, at))
      if (ports.length > MAX_PORTS) throw invalidDockerfile(`more than ${MAX_PORTS} ports are exposed`, at)
    }
    const exposed = { ...this.config.ExposedPorts, ...names(ports) }
    if (Object.keys(exposed).length > MAX_PORTS) throw invalidDockerfile(`more than ${MAX_PORTS} ports are exposed`, at)
    this.change({ ExposedPorts: exposed }, at)
    this.push(at, `EXPOSE [${ports.join(' ')}]`)
  }

  private takeRun({ line, mounts, network }: Command & { kind: 'run' }, at: Instruction): void {
    const { line: filled, script } = withHeredocs(line, at)
    const argv = this.argv(filled)
    if (argv.length === 0) throw invalidDockerfile('a command is needed', at)
    const long = argv.find((argument) => Buffer.byteLength(argument) > MAX_ARGUMENT)
    if (long !== undefined) throw invalidDockerfile(`the command has more than ${MAX_ARGUMENT} bytes`, at)
    const usedArgs: [string, string][] = []
    const shown: string[] = []
    this.budget.kept(this.args.size, at)
    for (const [name, value] of this.args) {
      const now = this.variables.get(name) ?? value
      if (now !== null) usedArgs.push([name, now])
      shown.push(`${name}=${now ?? ''}`)
    }
    const prefix = shown.length > 0 ? [`|${shown.length}`, ...shown] : []
    const op: RunOp = {
      kind: 'run',
      argv,
      env: this.environment(at),
      workingDir: this.workingDir(),
      user: this.config.User ?? '',
      network,
      mounts: mounts.map((mount) => this.mount(mount, at)),
      script,
      usedArgs: Object.fromEntries(usedArgs),
    }
    this.push(at, `RUN ${[...prefix, ...argv].join(' ')} # buildkit`, op)
  }

  private environment(at: Place): Readonly<Record<string, string>> {
    if (this.env) return this.env
    const env = new Map(this.variables)
    for (const [name, value] of this.given) {
      if (!proxyNames.has(name)) continue
      // Programs look for either.
      for (const either of [name.toUpperCase(), name.toLowerCase()])
        if (!this.variables.has(either) && (either === name || !this.given.has(either))) env.set(either, value)
    }
    this.budget.kept(env.size, at)
    this.env = Object.fromEntries(env)
    return this.env
  }

  private mount(mount: Mount, at: Instruction): RunMount {
    const values = mountValues(mount, (value) => this.expand(value, at), at)
    const { type, id, env, required, readOnly, sharing, size } = values
    const uid = values.uid ?? 0
    const gid = values.gid ?? 0
    const target = resolved(this.workingDir(), values.target, false)
    if (target === '/' && (type !== 'secret' || values.target !== ''))
      throw invalidDockerfile('--mount: the target cannot be /', at)
    const source = resolved('/', values.source, false)
    switch (type) {
      case 'tmpfs':
        return { type, target, size }
      case 'secret': {
        const named = values.source || id || values.target.replace(/^.*\//s, '')
        const file = `/run/secrets/${named.replace(/^.*\//s, '')}`
        const path = values.target === '' ? (env === null ? file : null) : target
        return { type, id: named, target: path, env, required, mode: values.mode ?? 0o400, uid, gid }
      }
      case 'cache': {
        const from = mount.from === null ? null : this.source(mount.from, at)
        const mode = values.mode ?? 0o755
        return { type, id: id || target, target, from, source, sharing, mode, uid, gid, readOnly }
      }
      case 'bind': {
        const from = mount.from === null ? ({ kind: 'context' } as const) : this.source(mount.from, at)
        if (from === null) throw invalidDockerfile('--mount: there is nothing in scratch: use type=tmpfs', at)
        return { type, from, source, target, readWrite: !readOnly }
      }
    }
  }

  /** Null is scratch. */
  private source(name: string, at: Place): CopySource | null {
    const source = plannedSource(this.stage, name, at)
    return source.kind === 'scratch' ? null : source
  }

  private takeCopy(command: Command & { kind: 'copy' }, at: Instruction): void {
    const { add, link, parents, unpack: extract } = command
    const sources = command.sources.map((word) => this.expand(word, at))
    const written = this.expand(command.destination, at)
    const chown = this.expand(command.chown, at) || null
    const chmod = this.expand(command.chmod, at) || null
    for (const source of sources) if (isRemote(source)) throw invalidDockerfile(refusedRemote(source, add), at)
    if (chmod !== null && !isMode(chmod))
      throw invalidDockerfile(`--chmod=${chmod} is neither octal (0644) nor symbolic (u=rw,go=r)`, at)
    for (const { name } of command.inline)
      if (name.includes('/') || name === '.' || name === '..')
        throw invalidDockerfile(`the heredoc ${JSON.stringify(name)} is no name of a file`, at)
    const from = command.from === null ? ({ kind: 'context' } as const) : this.source(command.from, at)
    if (from === null) throw invalidDockerfile('there is nothing in scratch to copy', at)
    const op: CopyOp = {
      kind: 'copy',
      from,
      sources,
      inline: command.inline.map(({ name, content, expand }) => ({
        name,
        data: expand ? this.expand(content, at, { escape: '\\', noQuotes: true }) : content,
      })),
      destination: resolved(this.workingDir(), written === '' ? './' : written, true),
      chown,
      chmod,
      link,
      extract,
      exclude: command.exclude,
      parents,
    }
    const words = [
      add ? 'ADD' : 'COPY',
      ...(parents ? ['--parents'] : []),
      ...(chown === null ? [] : [`--chown=${chown}`]),
      ...(chmod === null ? [] : [`--chmod=${chmod}`]),
      ...sources,
      ...op.inline.map(({ name }) => `<<${name}`),
      written,
    ]
    this.push(at, `${words.join(' ')} # buildkit`, op)
  }
}

type OpBody = BuildOp extends infer Op
  ? Op extends BuildOp
    ? Omit<Op, 'line' | 'name' | 'text' | 'config'>
    : never
  : never

const names = (of: readonly string[]) => Object.fromEntries(of.map((name) => [name, {}]))
