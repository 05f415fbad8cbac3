// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are variables of Dockerfiles
import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type BuildOp, type PlanOptions, planBuild } from './build-plan.js'
import { type EvaluatedStage, evaluateStage } from './build-stage.js'
import { parseDockerfile } from './dockerfile.js'
import { keywords } from './dockerfile-commands.js'
import type { ContainerConfig } from './manifest.js'

const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** The target evaluated, each image with the configuration that is given. */
function build(text: string, options: Partial<PlanOptions> = {}, image: ContainerConfig = {}): EvaluatedStage {
  const file = parseDockerfile(text)
  const all = { target: null, args: {}, platform: 'linux/amd64', ...options }
  const done = new Map<number, EvaluatedStage>()
  for (const stage of planBuild(file, all).stages) {
    const { from } = stage
    const base = from.kind === 'stage' ? done.get(from.index) : { config: from.kind === 'image' ? image : {} }
    done.set(stage.index, evaluateStage(file, stage, base ?? { config: {} }, all))
  }
  const [end] = [...done.values()].slice(-1)
  if (!end) throw new Error('no stage')
  return end
}

/** Of the last instruction, the step without the configuration. */
const last = (lines: string, options: Partial<PlanOptions> = {}, image: ContainerConfig = {}) => {
  const op = build(`FROM base\n${lines}`, options, image).ops.at(-1)
  const { config: _, line: __, name: ___, ...rest } = op as BuildOp
  return rest
}
const config = (lines: string, options: Partial<PlanOptions> = {}, image: ContainerConfig = {}) =>
  build(`FROM base\n${lines}`, options, image).config

describe('the configuration after', () => {
  test.each<[string, string, object]>([
    ['nothing', '', {}],
    ['ENV', 'ENV a=1 b="two words" c=3\\ 4', { Env: [PATH, 'a=1', 'b=two words', 'c=3 4'] }],
    ['ENV of the old form', 'ENV a  b c "d"', { Env: [PATH, 'a=b c d'] }],
    ['ENV again', 'ENV a=1\nENV a=$a:2', { Env: [PATH, 'a=1:2'] }],
    [
      'ENV sees what was before its line',
      'ENV a=hello\nENV a=bye b=$a\nENV c=$a',
      { Env: [PATH, 'a=bye', 'b=hello', 'c=bye'] },
    ],
    ['ENV of PATH', 'ENV PATH=/opt/bin:$PATH', { Env: [PATH.replace('=', '=/opt/bin:')] }],
    ['ARG is not in it', 'ARG a=1\nENV b=$a', { Env: [PATH, 'b=1'] }],
    ['LABEL', 'LABEL a=1 "b c"="d\\\ne" f=\'$g\'', { Labels: { a: '1', 'b c': 'de', f: '$g' } }],
    ['WORKDIR, relative to the last', 'WORKDIR /a\nWORKDIR b/../c\nWORKDIR d/', { WorkingDir: '/a/c/d' }],
    ['WORKDIR out of the root', 'WORKDIR ../../etc', { WorkingDir: '/etc' }],
    ['WORKDIR with a variable', 'ENV d=/x\nWORKDIR $d/$e', { Env: [PATH, 'd=/x'], WorkingDir: '/x' }],
    ['USER', 'ARG u=app\nUSER ${u}:grp', { User: 'app:grp' }],
    ['VOLUME', 'VOLUME /a /b\nVOLUME ["/c d"]', { Volumes: { '/a': {}, '/b': {}, '/c d': {} } }],
    [
      'EXPOSE',
      'ARG p="90 91/udp"\nEXPOSE 80 53/UDP 8000-8002/tcp $p\nEXPOSE 127.0.0.1:1:70',
      {
        ExposedPorts: Object.fromEntries(
          ['80/tcp', '53/udp', '8000/tcp', '8001/tcp', '8002/tcp', '90/tcp', '91/udp', '70/tcp'].map((p) => [p, {}]),
        ),
      },
    ],
    ['CMD of words', 'CMD ["a", "$b"]', { Cmd: ['a', '$b'], ArgsEscaped: true }],
    ['CMD of text', 'CMD a "$b"', { Cmd: ['/bin/sh', '-c', 'a "$b"'], ArgsEscaped: true }],
    ['CMD that is no JSON after all', "CMD ['a']", { Cmd: ['/bin/sh', '-c', "['a']"], ArgsEscaped: true }],
    [
      'SHELL',
      'SHELL ["/bin/bash", "-euc"]\nCMD a',
      { Shell: ['/bin/bash', '-euc'], Cmd: ['/bin/bash', '-euc', 'a'], ArgsEscaped: true },
    ],
    ['STOPSIGNAL', 'STOPSIGNAL SIGRTMIN+3', { StopSignal: 'SIGRTMIN+3' }],
    ['HEALTHCHECK NONE', 'HEALTHCHECK none', { Healthcheck: { Test: ['NONE'] } }],
    [
      'HEALTHCHECK',
      'HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=0 --start-interval=250ms --retries=3 CMD curl  x || exit 1',
      {
        Healthcheck: {
          Test: ['CMD-SHELL', 'curl  x || exit 1'],
          Interval: 90e9,
          Timeout: 1.5e9,
          StartInterval: 250e6,
          Retries: 3,
        },
      },
    ],
    ['HEALTHCHECK of words', 'HEALTHCHECK CMD ["a", "b"]', { Healthcheck: { Test: ['CMD', 'a', 'b'] } }],
    ['ONBUILD', 'ONBUILD RUN a\nOnBuild COPY <<E /x\nb\nE', { OnBuild: ['RUN a', 'COPY <<E /x\nb\nE'] }],
  ])('%s', (_, lines, expected) => expect(config(lines)).toEqual({ Env: [PATH], ...expected }))

  const image = {
    Env: ['PATH=/p', 'a=1'],
    Cmd: ['c'],
    Entrypoint: ['e'],
    User: 'u',
    WorkingDir: '/w',
    Labels: { l: '1' },
  }
  test('FROM scratch', () => expect(build('FROM scratch').config).toEqual({ Env: [PATH], WorkingDir: '/' }))

  test.each<[string, string, object]>([
    ['its base', '', {}],
    ['CMD', 'CMD ["d"]', { Cmd: ['d'], ArgsEscaped: true }],
    ['ENTRYPOINT: the command of the base was for its own', 'ENTRYPOINT ["f"]', { Entrypoint: ['f'], Cmd: null }],
    ['ENTRYPOINT after CMD', 'CMD ["d"]\nENTRYPOINT ["f"]', { Entrypoint: ['f'], Cmd: ['d'], ArgsEscaped: true }],
    ['ENTRYPOINT of nothing', 'ENTRYPOINT []', { Entrypoint: null, Cmd: null }],
    ['a relative WORKDIR', 'WORKDIR x', { WorkingDir: '/w/x' }],
    ['variables of the base', 'ENV b=$a', { Env: ['PATH=/p', 'a=1', 'b=1'] }],
    ['another label', 'LABEL m=2', { Labels: { l: '1', m: '2' } }],
  ])('%s (with a base)', (_, lines, expected) => expect(config(lines, {}, image)).toEqual({ ...image, ...expected }))
})

describe('RUN', () => {
  const run = {
    kind: 'run',
    env: { PATH: PATH.slice(5) },
    workingDir: '/',
    user: '',
    network: 'default',
    mounts: [],
    script: null,
    usedArgs: {},
  }
  test.each<[string, string, object]>([
    [
      'text',
      'RUN a  $b && \\\n # no\n  c',
      { argv: ['/bin/sh', '-c', 'a  $b &&   c'], text: 'RUN /bin/sh -c a  $b &&   c # buildkit' },
    ],
    ['words', 'RUN ["a", "b c"]', { argv: ['a', 'b c'], text: 'RUN a b c # buildkit' }],
    [
      'a heredoc alone',
      'RUN <<EOF\na\n  b $c\nEOF',
      { argv: ['/bin/sh', '-c', 'a\n  b $c\n'], text: 'RUN /bin/sh -c a\n  b $c\n # buildkit' },
    ],
    [
      'a heredoc without tabs',
      "RUN <<-'E'\n\ta\n\t\tb\n\tE",
      { argv: ['/bin/sh', '-c', 'a\nb\n'], text: 'RUN /bin/sh -c a\nb\n # buildkit' },
    ],
    [
      'a script',
      'RUN <<EOF\n#!/usr/bin/python\nprint(1)\nEOF',
      {
        argv: ['/bin/sh', '-c', '/dev/pipes/EOF'],
        script: { path: '/dev/pipes/EOF', data: '#!/usr/bin/python\nprint(1)\n' },
        text: 'RUN /bin/sh -c /dev/pipes/EOF # buildkit',
      },
    ],
    [
      'heredocs within a command',
      'RUN cat <<A <<-B 3<<"C" > x\n1\nA\n\t2\n\tB\n$3\nC',
      { argv: ['/bin/sh', '-c', 'cat <<A <<-B 3<<"C" > x\n1\nA\n\t2\nB\n$3\nC'], text: expect.anything() },
    ],
    [
      'what only looks like one',
      'RUN echo $((1<<2)) <<< x',
      { argv: ['/bin/sh', '-c', 'echo $((1<<2)) <<< x'], text: expect.anything() },
    ],
    ['no network', 'RUN --network=none a', { argv: ['/bin/sh', '-c', 'a'], network: 'none', text: expect.anything() }],
    [
      'the user and directory',
      'USER u\nWORKDIR /w\nRUN a',
      { argv: ['/bin/sh', '-c', 'a'], user: 'u', workingDir: '/w', text: expect.anything() },
    ],
    [
      'build arguments',
      'ARG x=1\nARG y\nENV z=3\nRUN a',
      {
        argv: ['/bin/sh', '-c', 'a'],
        env: { ...run.env, x: '1', z: '3' },
        usedArgs: { x: '1' },
        text: 'RUN |2 x=1 y= /bin/sh -c a # buildkit',
      },
    ],
  ])('%s', (_, lines, expected) => expect(last(lines)).toEqual({ ...run, ...expected }))

  const mounts = (flags: string) => {
    const op = last(`WORKDIR /w\nENV v=val\nRUN ${flags} a`)
    return op.kind === 'run' ? op.mounts : []
  }
  const cache = {
    type: 'cache',
    from: null,
    source: '/',
    sharing: 'shared',
    mode: 0o755,
    uid: 0,
    gid: 0,
    readOnly: false,
  }
  const secret = { type: 'secret', env: null, required: false, mode: 0o400, uid: 0, gid: 0 }
  test.each<[string, object]>([
    ['--mount=type=cache,target=/c', { ...cache, id: '/c', target: '/c' }],
    [
      '--mount=type=cache,dst=c,id=$v,sharing=locked,mode=0700,uid=1,gid=2,ro,from=img,source=s',
      {
        ...cache,
        id: 'val',
        target: '/w/c',
        sharing: 'locked',
        mode: 0o700,
        uid: 1,
        gid: 2,
        readOnly: true,
        from: { kind: 'image', reference: 'img' },
        source: '/s',
      },
    ],
    ['--mount=target=/b', { type: 'bind', from: { kind: 'context' }, source: '/', target: '/b', readWrite: false }],
    [
      '--mount=type=bind,src=../x,target=/$v,rw',
      { type: 'bind', from: { kind: 'context' }, source: '/x', target: '/val', readWrite: true },
    ],
    [
      '--mount=type=bind,"target=/a,b"',
      { type: 'bind', from: { kind: 'context' }, source: '/', target: '/a,b', readWrite: false },
    ],
    ['--mount=type=secret,id=s', { ...secret, id: 's', target: '/run/secrets/s' }],
    ['--mount=type=secret,id=s,env=S,required', { ...secret, id: 's', target: null, env: 'S', required: true }],
    [
      '--mount=type=secret,target=/root/.npmrc,mode=0444,required=true',
      { ...secret, id: '.npmrc', target: '/root/.npmrc', mode: 0o444, required: true },
    ],
    ['--mount=type=secret,id=s,env=S,target=t', { ...secret, id: 's', target: '/w/t', env: 'S' }],
    ['--mount=type=tmpfs,target=/t,size=64m', { type: 'tmpfs', target: '/t', size: 64 * 2 ** 20 }],
    ['--mount=type=tmpfs,target=/t', { type: 'tmpfs', target: '/t', size: null }],
  ])('%s', (flags, expected) => expect(mounts(flags.replace('"target=/a,b"', '\\"target=/a,b\\"'))).toEqual([expected]))

  test('proxies are there without being declared, and do not count for the cache', () => {
    const args = { http_proxy: 'p', NO_PROXY: 'n', other: 'o' }
    const op = last('RUN a', { args })
    expect(op).toMatchObject({ usedArgs: {}, text: 'RUN /bin/sh -c a # buildkit' })
    expect(op).toMatchObject({ env: { http_proxy: 'p', HTTP_PROXY: 'p', NO_PROXY: 'n', no_proxy: 'n' } })
    expect(op).not.toMatchObject({ env: { other: 'o' } })
    expect(last('ARG http_proxy\nRUN a', { args })).toMatchObject({ usedArgs: { http_proxy: 'p' } })
  })
})

describe('COPY and ADD', () => {
  const copy = {
    kind: 'copy',
    from: { kind: 'context' },
    inline: [],
    chown: null,
    chmod: null,
    link: false,
    extract: false,
    exclude: [],
    parents: false,
  }
  test.each<[string, string, object]>([
    ['a file', 'COPY a /b', { sources: ['a'], destination: '/b', text: 'COPY a /b # buildkit' }],
    [
      'into the working directory',
      'WORKDIR /w\nCOPY a b/ .',
      { sources: ['a', 'b/'], destination: '/w/', text: 'COPY a b/ . # buildkit' },
    ],
    ['relative', 'WORKDIR /w\nCOPY a ./x/../y', { sources: ['a'], destination: '/w/y', text: expect.anything() }],
    ['out of the root', 'COPY a ../../y/', { sources: ['a'], destination: '/y/', text: expect.anything() }],
    [
      'words of JSON',
      'COPY ["a b", "c", "/d e/"]',
      { sources: ['a b', 'c'], destination: '/d e/', text: expect.anything() },
    ],
    [
      'variables',
      'ARG v="x y"\nCOPY $v ${v}/ /$v',
      { sources: ['x y', 'x y/'], destination: '/x y', text: expect.anything() },
    ],
    [
      'all flags',
      'ARG u=1:2 b=c\nCOPY --from=img --chown=$u --chmod=u=rw,go-w --link --parents --exclude=*.md --exclude=$b a /',
      {
        from: { kind: 'image', reference: 'img' },
        sources: ['a'],
        destination: '/',
        chown: '1:2',
        chmod: 'u=rw,go-w',
        link: true,
        parents: true,
        exclude: ['*.md', '$b'],
        text: 'COPY --parents --chown=1:2 --chmod=u=rw,go-w a / # buildkit',
      },
    ],
    ['a switch that is off', 'COPY --link=false a /', { sources: ['a'], destination: '/', text: expect.anything() }],
    [
      'heredocs',
      'ARG v=1\nCOPY a <<X <<-"Y" /d/\n$v \\$v \\\\ "q"\nX\n\t$v\n\tY',
      {
        sources: ['a'],
        inline: [
          { name: 'X', data: '1 $v \\ "q"\n' },
          { name: 'Y', data: '$v\n' },
        ],
        destination: '/d/',
        text: 'COPY a <<X <<Y /d/ # buildkit',
      },
    ],
    [
      'ADD unpacks',
      'ADD a.tar /b',
      { sources: ['a.tar'], destination: '/b', extract: true, text: 'ADD a.tar /b # buildkit' },
    ],
    [
      'ADD may not',
      'ADD --unpack=false a.tar /b',
      { sources: ['a.tar'], destination: '/b', text: 'ADD a.tar /b # buildkit' },
    ],
  ])('%s', (_, lines, expected) => expect(last(lines)).toEqual({ ...copy, ...expected }))
})

describe('arguments', () => {
  /** What $x is at the end. */
  const value = (text: string, args: Record<string, string> = {}) => {
    const env = build(`${text}\nENV result="\${x-unset}"`, { args }).config.Env?.at(-1)
    return env?.slice('result='.length)
  }
  test.each<[string, string, string, Record<string, string>]>([
    ['a default', 'FROM a\nARG x=1', '1', {}],
    ['one that is given', 'FROM a\nARG x=1', '2', { x: '2' }],
    ['one that nothing declares', 'FROM a', 'unset', { x: '2' }],
    ['one before the first FROM is not seen', 'ARG x=1\nFROM a', 'unset', {}],
    ['but where it is declared', 'ARG x=1\nFROM a\nARG x', '1', {}],
    ['its own default is nearer', 'ARG x=1\nFROM a\nARG x=3', '3', {}],
    ['what is given is nearest', 'ARG x=1\nFROM a\nARG x=3', '2', { x: '2' }],
    ['several on a line, each from those before', 'FROM a\nARG y=1 x=${y}2', '12', {}],
    ['ENV after ARG', 'FROM a\nARG x=1\nENV x=4', '4', {}],
    ['a stage knows those of its base', 'FROM a AS s\nARG x=1\nFROM s', '1', {}],
    ['others do not', 'FROM a AS s\nARG x=1\nFROM b\nCOPY --from=s / /', 'unset', {}],
    [
      'the platform',
      'FROM a\nARG TARGETPLATFORM TARGETARCH\nARG x=$TARGETPLATFORM,$TARGETARCH',
      'linux/amd64,amd64',
      {},
    ],
    ['the platform is not there unless declared', 'FROM a\nARG x=$TARGETARCH', '', {}],
    ['the stage that is built', 'FROM a AS s\nARG TARGETSTAGE\nARG x=$TARGETSTAGE', 's', {}],
    ['nothing is inherited from objects', 'FROM a\nARG constructor\nARG x=${constructor-none}', 'none', {}],
  ])('%s', (_, text, expected, args) => expect(value(text, args)).toBe(expected))
})

describe('triggers of the base', () => {
  test('come first, and are gone', () => {
    const { ops, config } = build('FROM a\nRUN last', {}, { OnBuild: ['COPY <<E /x\nhi\nE', 'ENV a=1'] })
    expect(ops.map(({ name, text, line }) => [line, name, text])).toEqual([
      [1, 'ONBUILD COPY <<E /x', 'COPY <<E /x # buildkit'],
      [1, 'ONBUILD ENV a=1', 'ENV a=1'],
      [2, 'RUN last', 'RUN /bin/sh -c last # buildkit'],
    ])
    expect(config).toEqual({ Env: [PATH, 'a=1'] })
  })

  test('those of a stage are carried out by the stages that begin with it, and its sources are planned', () => {
    const text =
      'FROM x AS tools\nFROM a AS b\nONBUILD COPY --from=tools /t /t\nONBUILD RUN --mount=from=img,target=/m t\nFROM b'
    const file = parseDockerfile(text)
    const plan = planBuild(file, { target: null, args: {}, platform: 'linux/amd64' })
    expect(plan.references).toEqual(['x', 'a', 'img'])
    expect(plan.stages.at(-1)).toMatchObject({ needs: [0, 1], images: ['img'] })
    const { ops } = build(text)
    expect(ops).toMatchObject([
      { kind: 'copy', from: { kind: 'stage', index: 0 } },
      { kind: 'run', line: 5 },
    ])
  })

  test('those of an image may copy from what the build has anyway', () => {
    const text = 'FROM tool AS tools\nFROM a AS b\nFROM c\nCOPY --from=tools / /\nCOPY --from=b / /'
    const file = parseDockerfile(text)
    const options = { target: null, args: {}, platform: 'linux/amd64' }
    const [, stage] = planBuild(file, options).stages
    if (!stage) throw new Error('no stage')
    const OnBuild = ['COPY --from=tools /t /t', 'COPY --from=tool /t /t']
    expect(evaluateStage(file, stage, { config: { OnBuild } }, options).ops).toMatchObject([
      { from: { kind: 'stage', index: 0 } },
      { from: { kind: 'image', reference: 'tool' } },
    ])
  })

  test.each<[string, string, RegExp]>([
    ['what the plan has no image of', 'COPY --from=other /a /b', /names other, which the build has not/],
    ['a chain', 'ONBUILD RUN a', /ONBUILD is not allowed/],
    ['a stage', 'FROM a', /FROM is not allowed/],
    ['two', 'RUN a\nRUN b', /must be one/],
    ['none', '# nothing', /no instructions/],
    ['what is no instruction', 'NO way', /unknown instruction/],
  ])('refuses %s', (_, trigger, message) => {
    expect(() => build('FROM a', {}, { OnBuild: [trigger] })).toThrow(message)
    expect(() => build('FROM a', {}, { OnBuild: [trigger] })).toThrow(Failure)
  })
})

test('history tells of each step as BuildKit does', () => {
  const lines = `ARG a=1
ENV b=2 c="3 4"
LABEL d=5
WORKDIR /w
WORKDIR /
USER u
VOLUME /v /x
EXPOSE 80 90/udp
SHELL ["/bin/bash", "-c"]
STOPSIGNAL 9
CMD ["x", "y \\"z\\""]
ENTRYPOINT e
HEALTHCHECK --interval=90s --timeout=3s CMD c d
MAINTAINER me <a@b>`
  expect(build(`FROM a\n${lines}`).ops.map(({ kind, text }) => `${kind}: ${text}`)).toEqual([
    'config: ARG a=1',
    'config: ENV b=2 c=3 4',
    'config: LABEL d=5',
    'workdir: WORKDIR /w',
    'config: WORKDIR /',
    'config: USER u',
    'config: VOLUME [/v /x]',
    'config: EXPOSE [80/tcp 90/udp]',
    'config: SHELL [/bin/bash -c]',
    'config: STOPSIGNAL 9',
    'config: CMD ["x" "y \\"z\\""]',
    'config: ENTRYPOINT ["/bin/bash" "-c" "e"]',
    'config: HEALTHCHECK {Test:[CMD-SHELL c d] Interval:1m30s Timeout:3s StartPeriod:0s StartInterval:0s Retries:0}',
    'config: MAINTAINER me <a@b>',
  ])
  expect(build(`FROM a\n${lines}`).author).toBe('me <a@b>')
})

test('warns of variables that are not set, and of secrets', () => {
  const { warnings } = build('FROM a\nARG declared\nENV x=$nothing$declared\nENV API_KEY=1 PUBLIC_KEY=2\nRUN $shell')
  expect(warnings).toEqual([
    { line: 3, message: 'the variable $nothing is not set' },
    { line: 4, message: 'ENV API_KEY is readable in the image: use RUN --mount=type=secret for secrets' },
  ])
})

describe('refuses', () => {
  test.each<[string, RegExp]>([
    ['RUN --mount=type=tmpfs,target=/ a', /target cannot be \//],
    ['RUN --mount=type=cache a', /target cannot be \//],
    ['ARG t=ssh\nRUN --mount=type=$t,target=/x a', /line 3, RUN: --mount: type=ssh is refused/],
    ['RUN --mount=type=bind,from=scratch,target=/x a', /nothing in scratch/],
    ['COPY --from=scratch a /', /nothing in scratch/],
    ['COPY --chmod=999 a /', /neither octal/],
    ['COPY --chmod=77777 a /', /neither octal/],
    ['COPY https://x/y /', /the source cannot be a URL/],
    ['ADD https://x/y /', /is not fetched/],
    ['ADD git@github.com:a/b.git /', /is not fetched/],
    ['ARG u=http://x\nADD $u /', /is not fetched/],
    ['COPY <<../x /\nE\n../x', /no name of a file/],
    ['RUN <<../x\n#!/bin/sh\n../x', /no name of a script/],
    ['EXPOSE 65536', /is no port/],
    ['EXPOSE 80/icmp', /is no protocol/],
    ['EXPOSE 1-65535', /more than 16384 ports/],
    ['EXPOSE 9-8', /is no port/],
    ['STOPSIGNAL SIGNOPE', /is no signal/],
    ['VOLUME $nothing', /cannot be empty/],
    ['ENV $nothing=a', /is no name/],
    ['ENV a="${b:?is needed}"', /line 2, ENV: b: is needed/],
    ['RUN []', /a command is needed/],
  ])('%s', (lines, message) => {
    expect(() => last(lines)).toThrow(message)
    expect(() => last(lines)).toThrow(Failure)
  })

  test.each<[string, string]>([
    ['values that double', `ENV a=0123456789\n${'ENV a=$a$a\n'.repeat(30)}`],
    ['many values that are long', `ENV a=${'x'.repeat(100_000)}\n${'LABEL b=$a\n'.repeat(100)}`],
    [
      'configurations that grow',
      `${Array.from({ length: 900 }, (_, i) => `ENV ${Array.from({ length: 20 }, (_, j) => `a${i}_${j}=1`).join(' ')}`).join('\n')}`,
    ],
    ['patterns that compare for long', `ENV a=${'ab'.repeat(50_000)}\nENV b=\${a//${'*b'.repeat(1000)}c/d}`],
    ['nesting', `ENV a=${'${b:-'.repeat(100)}x${'}'.repeat(100)}`],
    ['a command that no kernel takes', `RUN <<E\n${'x'.repeat(131_072)}\nE`],
  ])('%s', (_, lines) => expect(() => build(`FROM a\n${lines}`)).toThrow(Failure))
})

test.each<[string, string]>([
  ['a directive', `# escape=\\${' '.repeat(900_000)}x\nFROM a`],
  ['ends of lines', `FROM a\nRUN b${'\r'.repeat(900_000)}x`],
  ['escapes', `FROM a\nRUN ${'\\ '.repeat(400_000)}x`],
  ['quotes in a mount', `FROM a\nRUN --mount="${'\\"'.repeat(400_000)}x a`],
  ['a time', `FROM a\nHEALTHCHECK --interval=${'1'.repeat(900_000)} CMD a`],
  ['a mode', `FROM a\nCOPY --chmod=${'u+'.repeat(400_000)}! a /`],
  ['ports', `FROM a\nEXPOSE ${'1-16000 '.repeat(100_000)}`],
  ['colons of a port', `FROM a\nEXPOSE ${':'.repeat(120_000)}x`],
  [
    'variables',
    `FROM a\n${Array.from({ length: 10 }, (_, i) => `ENV ${Array.from({ length: 9000 }, (_, j) => `v${i}_${j}=1`).join(' ')}`).join('\n')}`,
  ],
  [
    'arguments of commands',
    `FROM a\nARG ${Array.from({ length: 9000 }, (_, j) => `v${j}=1`).join(' ')}\n${'RUN a\n'.repeat(900)}`,
  ],
  ['flags', `FROM a\nCOPY ${'--exclude=a '.repeat(70_000)}a /`],
  ['heredocs', `FROM a\nCOPY ${'<<E '.repeat(100_000)}/\n${'E\n'.repeat(100_000)}`],
  [
    'names of heredocs',
    `FROM a\nCOPY ${Array.from({ length: 50_000 }, (_, i) => `<<E${i}`).join(' ')} /\n${Array.from({ length: 50_000 }, (_, i) => `E${i}`).join('\n')}`,
  ],
  ['shifts', `FROM a\nRUN ${'<< x '.repeat(100_000)}\n${'RUN a\n'.repeat(50_000)}`],
  ['braces', `FROM a\nENV a=${'${'.repeat(400_000)}`],
  ['stages', `${'FROM a\nLABEL b=c\n'.repeat(200)}`],
  [
    'stages upon stages',
    `FROM a AS s0\n${Array.from({ length: 198 }, (_, i) => `FROM s${i} AS s${i + 1}\nENV v${i}=${'x'.repeat(4000)}`).join('\n')}`,
  ],
])('what is made to take long does not: %s', (_, text) => {
  try {
    build(text)
  } catch (error) {
    expect(error).toBeInstanceOf(Failure)
    expect(String(error).length).toBeLessThan(4000)
  }
})

test('whatever is written, there is a build or a failure', () => {
  const word = fc.constantFrom(
    'a',
    '$a',
    '${a}',
    '${a:-b}',
    '${a#*}',
    '"q"',
    "'",
    '"',
    '\\',
    '<<E',
    '=',
    'a=b',
    '[',
    '["a"]',
    '--from=0',
    '--x',
    '--mount=type=cache,target=c',
    '/',
    '.',
    '80',
    '8-9/udp',
    'E',
    'NONE',
    'CMD',
    '#',
    '\n',
    'AS',
    'scratch',
  )
  const keyword = fc.constantFrom(...keywords)
  const line = fc.tuple(keyword, fc.array(word, { maxLength: 5 })).map(([first, words]) => [first, ...words].join(' '))
  const refused = new Set<boolean>()
  fc.assert(
    fc.property(fc.array(line, { maxLength: 8 }), fc.boolean(), (lines, backtick) => {
      try {
        build([...(backtick ? ['# escape=`'] : []), 'FROM b', ...lines].join('\n'))
        refused.add(false)
      } catch (error) {
        refused.add(true)
        expect(error).toBeInstanceOf(Failure)
        expect(error).toMatchObject({
          code: 'dockerfile_invalid',
          data: { line: expect.any(Number), instruction: expect.any(String) },
        })
      }
    }),
    { numRuns: 1000 },
  )
  expect(refused).toEqual(new Set([true, false]))
})
