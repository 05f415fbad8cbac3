// versions.ts: which of two versions is newer, as each package manager has it.
import type { PackageType } from '@berth/contracts'
import pep440 from '@renovatebot/pep440'
import semver, { type SemVer } from 'semver'

/** Longer ones are none: what compares them is not made for anything. */
const MAX_LENGTH = 256

/**
 * Compares two versions.
 * @returns below, at or above 0; undefined where one of them is none of this kind
 */
export function compareVersions(type: PackageType, a: string, b: string): number | undefined {
  if (a.length > MAX_LENGTH || b.length > MAX_LENGTH) return undefined
  if (type === 'deb') return compareDebian(a, b)
  if (type === 'apk') return compareAlpine(a, b)
  if (type === 'npm') {
    const [one, other] = [semanticOf(a), semanticOf(b)]
    // Not `semver.compare`, which reads both again, strictly, and throws.
    return one && other ? one.compare(other) : undefined
  }
  const [one, other] = [a.trim(), b.trim()]
  return pep440.valid(one) && pep440.valid(other) ? pep440.compare(one, other) : undefined
}

/** Loosely, as npm reads what is installed. Records have `13.0` too, which is 13.0.0. */
const semanticOf = (text: string): SemVer | null =>
  semver.parse(/^v?\d+(?:\.\d+)?$/.test(text) ? `${text}${text.includes('.') ? '.0' : '.0.0'}` : text, { loose: true })

// deb-version(7): [epoch:]upstream[-revision]; only behind an epoch there may be more colons.
const debian = /^(?:(\d{1,9}):(?=.)|(?!.*:))([A-Za-z0-9.+~:-]*?)(?:-([A-Za-z0-9.+~]*))?$/

function compareDebian(a: string, b: string): number | undefined {
  const [one, other] = [debian.exec(a), debian.exec(b)]
  if (!one || !other) return undefined
  const [, epoch = '0', upstream = '', revision = ''] = one
  const [, itsEpoch = '0', itsUpstream = '', itsRevision = ''] = other
  return Number(epoch) - Number(itsEpoch) || compareParts(upstream, itsUpstream) || compareParts(revision, itsRevision)
}

const isDigit = (code: number): boolean => code >= 48 && code <= 57

/** Letters before all others, `~` before the end, the end before everything else. */
function orderOf(text: string, at: number): number {
  const code = text.charCodeAt(at)
  if (at >= text.length || isDigit(code)) return 0
  if (code === 126) return -1
  return /[A-Za-z]/.test(text[at] ?? '') ? code : code + 256
}

/** As dpkg does (deb-version(7), "Sorting algorithm"): by turns a part of no digits, and one of digits. */
function compareParts(a: string, b: string): number {
  let [i, j] = [0, 0]
  while (i < a.length || j < b.length) {
    while ((i < a.length && !isDigit(a.charCodeAt(i))) || (j < b.length && !isDigit(b.charCodeAt(j)))) {
      const difference = orderOf(a, i) - orderOf(b, j)
      if (difference !== 0) return difference
      i++
      j++
    }
    const [one, other] = [digitsAt(a, i), digitsAt(b, j)]
    const difference = compareNumbers(one, other)
    if (difference !== 0) return difference
    i += one.length
    j += other.length
  }
  return 0
}

function digitsAt(text: string, from: number): string {
  let end = from
  while (end < text.length && isDigit(text.charCodeAt(end))) end++
  return text.slice(from, end)
}

/** Numbers of any length. */
function compareNumbers(a: string, b: string): number {
  const [one, other] = [a.replace(/^0+/, ''), b.replace(/^0+/, '')]
  return one.length - other.length || compareText(one, other)
}

const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

// apk-tools, src/version.c: digits{.digits}[letter[digits]]{_suffix[digits]}[~hash][-rdigits]. Digits behind a letter are of
// apk 2 alone, which Alpine had when it had such versions (libretls 3.3.3p1-r3).
const alpine =
  /^(\d+(?:\.\d+)*)(?:([a-z])(\d*))?((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)(?:~([0-9a-f]+))?(?:-r(\d+))?$/
/** Those before the nothing in the middle are of what comes before a release. */
const suffixes = ['alpha', 'beta', 'pre', 'rc', '', 'cvs', 'svn', 'git', 'hg', 'p']

function compareAlpine(a: string, b: string): number | undefined {
  const [one, other] = [alpine.exec(a), alpine.exec(b)]
  if (!one || !other) return undefined
  const [, numbers = '', letter = '', patch = '', suffix = '', hash = '', revision = ''] = one
  const [, itsNumbers = '', itsLetter = '', itsPatch = '', itsSuffix = '', itsHash = '', itsRevision = ''] = other
  return (
    compareLists(numbers.split('.'), itsNumbers.split('.'), compareComponents) ||
    compareText(letter, itsLetter) ||
    compareOptional(patch, itsPatch) ||
    compareSuffixes(suffix, itsSuffix) ||
    compareText(hash, itsHash) ||
    compareOptional(revision, itsRevision)
  )
}

/** Numbers of which none, too, is less than 0. */
const compareOptional = (a: string, b: string): number =>
  a === '' || b === '' ? Math.sign(a.length - b.length) : compareNumbers(a, b)

/** The first is a number; of the others one that begins with 0 is a fraction. */
const compareComponents = (a: string, b: string, index: number): number =>
  index > 0 && (a.startsWith('0') || b.startsWith('0')) ? compareText(a, b) : compareNumbers(a, b)

/** Item by item; of two that begin the same the longer one is greater. */
function compareLists(a: readonly string[], b: readonly string[], compare: typeof compareComponents): number {
  for (const [index, one] of a.entries()) {
    const other = b[index]
    if (other === undefined) return 1
    const difference = compare(one, other, index)
    if (difference !== 0) return difference
  }
  return a.length - b.length
}

function compareSuffixes(a: string, b: string): number {
  const parts = (text: string) => text.split('_').slice(1)
  const [one, other] = [parts(a), parts(b)]
  for (let index = 0; index < Math.max(one.length, other.length); index++) {
    const [mine, its] = [suffixAt(one, index), suffixAt(other, index)]
    const difference = mine.rank - its.rank || compareOptional(mine.number, its.number)
    if (difference !== 0) return difference
  }
  return 0
}

function suffixAt(parts: readonly string[], index: number): { readonly rank: number; readonly number: string } {
  const [, name = '', number = ''] = /^([a-z]*)(\d*)$/.exec(parts[index] ?? '') ?? []
  return { rank: suffixes.indexOf(name), number }
}
