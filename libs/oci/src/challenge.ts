// challenge.ts: what a registry wants to know of its caller (RFC 9110, section 11.6.1; distribution's token
// specification). One header may hold several challenges.

export interface Challenge {
  /** In lower case. */
  readonly scheme: string
  readonly parameters: Readonly<Record<string, string>>
}

const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
const part = new RegExp(`\\s*(?:(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))|(${token}))\\s*(,|$)?`, 'y')

/** What can be understood of the header; the rest is left out. */
export function parseChallenges(header: string): readonly Challenge[] {
  const challenges: { scheme: string; parameters: Record<string, string> }[] = []
  part.lastIndex = 0
  while (part.lastIndex < header.length) {
    const found = part.exec(header)
    if (!found || found[0] === '') break
    const [, name, quoted, plain, scheme] = found
    if (scheme !== undefined) challenges.push({ scheme: scheme.toLowerCase(), parameters: {} })
    const current = challenges.at(-1)
    if (name !== undefined && current)
      current.parameters[name.toLowerCase()] = quoted?.replace(/\\(.)/g, '$1') ?? plain ?? ''
  }
  return challenges
}
