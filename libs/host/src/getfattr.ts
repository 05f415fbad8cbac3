/**
 * A path or name as getfattr(1) writes it → as it is: control characters, backslashes and what is not ASCII stand there as
 * three octal digits a byte. Bytes that are no UTF-8 become U+FFFD.
 */
export function unescaped(text: string): string {
  if (!text.includes('\\')) return text
  const bytes = Buffer.from(text).toString('latin1')
  const plain = bytes.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
  return Buffer.from(plain, 'latin1').toString()
}
