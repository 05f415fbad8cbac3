/**
 * A path or name as getfattr(1) writes it → its bytes: control characters and backslashes, and in some versions what is not
 * ASCII, stand there as three octal digits a byte.
 * @param text and result: a character for each byte (latin1)
 */
export const unescapedBytes = (text: string): string =>
  text.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** The same of text. Bytes that are no UTF-8 become U+FFFD. */
export function unescaped(text: string): string {
  if (!text.includes('\\')) return text
  return Buffer.from(unescapedBytes(Buffer.from(text).toString('latin1')), 'latin1').toString()
}
