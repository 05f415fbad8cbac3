// commit.ts: the configuration of an image that is another one with one more layer.
import { Failure, type NodeCommit, signalNames } from '@berth/contracts'
import { z } from 'zod'
import { parseImageConfig } from './manifest.js'

/** What a layer's tar is whose layer changes nothing: two blocks of zeros. */
export const EMPTY_DIFF_ID = 'sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef'
/** As in a manifest. */
const MAX_LAYERS = 500

const Document = z.looseObject({ config: z.looseObject({}).nullish(), history: z.array(z.unknown()).nullish() })

/** What builders write down of the container that they made the image with. */
const ofItsBuilder = new Set(['container', 'container_config', 'docker_version', 'id', 'parent'])

/**
 * The configuration as bytes; what this does not know of the one below stays. Equal input gives equal bytes.
 * @param base configuration of the image below
 * @param diffId of the layer; EMPTY_DIFF_ID: it gets none
 * @throws Failure image_invalid when the one below has as many layers as an image may have
 */
export function committedConfig(
  base: Uint8Array,
  of: Pick<NodeCommit, 'author' | 'comment' | 'changes'> & { readonly diffId: string; readonly createdAt: string },
): Buffer {
  const { diffId, createdAt, author, comment, changes } = of
  const { rootfs, config } = parseImageConfig(base)
  const before = Document.parse(JSON.parse(new TextDecoder().decode(base)))
  const empty = diffId === EMPTY_DIFF_ID
  if (!empty && rootfs.diff_ids.length >= MAX_LAYERS)
    throw new Failure('image_invalid', `the image has ${MAX_LAYERS} layers already, which is the most there can be`)
  const kept = Object.entries(before).filter(([name]) => !ofItsBuilder.has(name))
  return Buffer.from(
    JSON.stringify({
      ...Object.fromEntries(kept),
      created: createdAt,
      author: author || undefined,
      config: { ...before.config, ...changed(config, changes) },
      rootfs: { type: 'layers', diff_ids: [...rootfs.diff_ids, ...(empty ? [] : [diffId])] },
      history: [
        ...(before.history ?? []),
        {
          ...{ created: createdAt, created_by: 'commit', comment: comment || undefined, author: author || undefined },
          ...(empty ? { empty_layer: true } : {}),
        },
      ],
    }),
  )
}

type Config = ReturnType<typeof parseImageConfig>['config']

function changed(config: Config, changes: NodeCommit['changes']): Record<string, unknown> {
  const { env, entrypoint, command, workingDir, user, labels, exposedPorts, volumes, stopSignal } = changes
  return {
    ...(env && { Env: withVariables(config.Env ?? [], env) }),
    ...(entrypoint && { Entrypoint: entrypoint, Cmd: undefined }),
    ...(command && { Cmd: command }),
    ...(workingDir !== undefined && { WorkingDir: workingDir }),
    ...(user !== undefined && { User: user }),
    ...(labels && { Labels: { ...config.Labels, ...labels } }),
    ...(exposedPorts && { ExposedPorts: { ...config.ExposedPorts, ...named(exposedPorts.map(withProtocol)) } }),
    ...(volumes && { Volumes: { ...config.Volumes, ...named(volumes) } }),
    ...(stopSignal !== undefined && { StopSignal: signalNames[stopSignal - 1] ?? String(stopSignal) }),
  }
}

const named = (names: readonly string[]) => Object.fromEntries([...names].sort().map((name) => [name, {}]))
const withProtocol = (port: string) => (port.includes('/') ? port : `${port}/tcp`)

/** A variable keeps its place; new ones come last. */
function withVariables(before: readonly string[], env: Readonly<Record<string, string>>): readonly string[] {
  const given = new Map(Object.entries(env))
  const kept = before.map((line) => {
    const name = line.split('=', 1)[0] ?? ''
    const value = given.get(name)
    given.delete(name)
    return value === undefined ? line : `${name}=${value}`
  })
  return [...kept, ...[...given].map(([name, value]) => `${name}=${value}`)]
}
