// secrets.ts: what this installation signs and derives with. One file for all replicas, made by whichever starts
// first. Losing it costs little: nodes join again and learn the new keys; logins for registries are set anew.
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from 'node:crypto'
import { chmod, link, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoOf, Fault, type NodeId } from '@berth/contracts'
import { newGrantKeys } from '@berth/node-rpc'
import { z } from 'zod'

const Stored = z.object({
  grantPrivateKey: z.string().startsWith('-----BEGIN PRIVATE KEY-----'),
  grantPublicKey: z.string().startsWith('-----BEGIN PUBLIC KEY-----'),
  /** 32 bytes, base64. Passwords of nodes and the keys of what is stored sealed are derived from it. */
  root: z.string().regex(/^[A-Za-z0-9+/]{43}=$/),
})
type Stored = z.infer<typeof Stored>

/** Keys of the installation. */
export class Secrets {
  readonly #stored: Stored
  readonly #answerKey: Buffer
  readonly #loginKey: Buffer

  constructor(stored: Stored) {
    this.#stored = stored
    const root = Buffer.from(stored.root, 'base64')
    this.#answerKey = Buffer.from(hkdfSync('sha256', root, '', 'berth stored answers', 32))
    this.#loginKey = Buffer.from(hkdfSync('sha256', root, '', 'berth registry logins', 32))
  }

  get grantPrivateKey(): string {
    return this.#stored.grantPrivateKey
  }

  get grantPublicKey(): string {
    return this.#stored.grantPublicKey
  }

  /** A node's password in Redis: derived, so that no table holds it and every replica knows it. */
  queuePassword(nodeId: NodeId): string {
    return createHmac('sha256', Buffer.from(this.#stored.root, 'base64')).update(`queue ${nodeId}`).digest('base64url')
  }

  /** Seals an answer. `context` must be the same when it is opened. */
  seal(text: string, context: string): string {
    return seal(this.#answerKey, text, context)
  }

  /** Inverse of `seal`; undefined when it was sealed with other keys or in another context. */
  open(sealed: string, context: string): string | undefined {
    return open(this.#answerKey, sealed, context)
  }

  /** As `seal`, for the password of a registry: with a key of its own. */
  sealLogin(password: string, context: string): string {
    return seal(this.#loginKey, password, context)
  }

  /** Inverse of `sealLogin`, as `open`. */
  openLogin(sealed: string, context: string): string | undefined {
    return open(this.#loginKey, sealed, context)
  }
}

/** AES-256-GCM: 12 bytes nonce, 16 bytes tag, ciphertext; base64. */
function seal(key: Buffer, text: string, context: string): string {
  const nonce = randomBytes(12)
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(context))
  const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
  return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString('base64')
}

function open(key: Buffer, sealed: string, context: string): string | undefined {
  const bytes = Buffer.from(sealed, 'base64')
  try {
    const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12))
    decipher.setAAD(Buffer.from(context)).setAuthTag(bytes.subarray(12, 28))
    return Buffer.concat([decipher.update(bytes.subarray(28)), decipher.final()]).toString('utf8')
  } catch {
    return undefined
  }
}

/** Random keys for a new installation. */
export function newSecrets(): Stored {
  const { privateKey, publicKey } = newGrantKeys()
  return { grantPrivateKey: privateKey, grantPublicKey: publicKey, root: randomBytes(32).toString('base64') }
}

function parse(text: string, source: string): Secrets {
  try {
    return new Secrets(Stored.parse(JSON.parse(text)))
  } catch {
    // The cause would quote the text.
    throw new Fault(`reading secrets from ${source}`, { cause: 'it does not hold the JSON that this program writes' })
  }
}

/**
 * Takes the secrets from `inline`, else from `file`, which is made (mode 0600) when it is missing.
 * @throws Fault when they are malformed, or when others may read the file
 */
export async function loadSecrets(file: string, inline: string | undefined): Promise<Secrets> {
  if (inline !== undefined) return parse(inline, 'BERTH_SECRETS')
  try {
    await createOnce(file)
    const { mode } = await stat(file)
    if (mode & 0o077) throw new Error(`its mode is ${(mode & 0o777).toString(8)}: only its owner may read it`)
    return parse(await readFile(file, 'utf8'), file)
  } catch (cause) {
    throw cause instanceof Fault ? cause : new Fault(`reading secrets from ${file}`, { cause })
  }
}

// Written aside and linked into place: of two replicas that start at once one wins and both read its file, whole.
async function createOnce(file: string): Promise<void> {
  try {
    await stat(file)
    return
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
  }
  await mkdir(dirname(file), { recursive: true, mode: 0o700 })
  const draft = `${file}.${process.pid}.${randomBytes(4).toString('hex')}`
  try {
    await writeFile(draft, `${JSON.stringify(newSecrets(), undefined, 2)}\n`, { mode: 0o600, flag: 'wx' })
    await chmod(draft, 0o600)
    await link(draft, file).catch((error) => {
      if (errnoOf(error) !== 'EEXIST') throw error
    })
  } finally {
    await rm(draft, { force: true })
  }
}
