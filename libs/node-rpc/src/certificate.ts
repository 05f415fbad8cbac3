// certificate.ts: the node's TLS identity. Self-signed, because it is not vouched for by anyone: the API pins the exact
// certificate that the node handed over when it joined with its token.
import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ignore } from '@berth/contracts'
import { generate } from 'selfsigned'

export interface Certificate {
  /** PEM, to be told to the API. */
  readonly certificate: string
  /** PEM, stays on the node. */
  readonly key: string
}

const FILE = 'streams.pem'
const YEARS_MS = 365.25 * 24 * 3_600_000

/**
 * The node's certificate, made on first use and kept in `<dir>/streams.pem`, readable by root only. It lasts 30 years:
 * pinning makes a renewal no safer, and an expired one would cut off all output at once.
 * @throws when the directory cannot be written
 */
export async function nodeCertificate(dir: string, now = new Date()): Promise<Certificate> {
  const file = join(dir, FILE)
  const kept = await readFile(file, 'utf8').catch((error) => ignore(error, 'ENOENT'))
  const known = kept === undefined ? undefined : certificateOf(kept)
  if (known) return known
  const made = await newCertificate(now)
  // Both in one file, renamed into place: a crash leaves either no certificate or one with its key.
  await mkdir(dir, { recursive: true })
  await writeFile(`${file}.new`, `${made.certificate}\n${made.key}\n`, { mode: 0o600 })
  await chmod(`${file}.new`, 0o600)
  await rename(`${file}.new`, file)
  return made
}

async function newCertificate(now: Date): Promise<Certificate> {
  const pems = await generate([{ name: 'commonName', value: 'berth-node' }], {
    keyType: 'ec',
    curve: 'P-256',
    algorithm: 'sha256',
    // A day back, so that an API whose clock is behind does not refuse it.
    notBeforeDate: new Date(now.getTime() - 24 * 3_600_000),
    notAfterDate: new Date(now.getTime() + 30 * YEARS_MS),
  })
  return { certificate: pems.cert.trim(), key: pems.private.trim() }
}

/** Undefined when the file was damaged: a new certificate is then told to the API at the next join. */
function certificateOf(text: string): Certificate | undefined {
  const [certificate] = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/.exec(text) ?? []
  const [key] = /-----BEGIN (?:EC )?PRIVATE KEY-----[^-]+-----END (?:EC )?PRIVATE KEY-----/.exec(text) ?? []
  return certificate && key ? { certificate, key } : undefined
}
