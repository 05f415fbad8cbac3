// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are variables of Dockerfiles
import { Failure } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { parseDockerfile } from './dockerfile.js'

/** Lines with what is in them. */
const taken = (text: string) =>
  parseDockerfile(text).instructions.map(({ line, keyword, flags, rest }) =>
    [line, keyword, ...flags, rest].filter((part) => part !== '').join('|'),
  )

describe('lines', () => {
  test.each<[string, string, string[]]>([
    ['one', 'FROM a', ['1|FROM|a']],
    ['blank ones and comments', '\n# c\n  # d\n  from a  \n\n#e\nRun b', ['4|FROM|a', '7|RUN|b']],
    ['of Windows', 'FROM a\r\nRUN b \\\r\n  c\r\n', ['1|FROM|a', '2|RUN|b   c']],
    ['a mark of the byte order', '\uFEFFFROM a', ['1|FROM|a']],
    ['continued', 'RUN a \\\n  b \\  \n# no\n\tc\nRUN d', ['1|RUN|a   b \tc', '5|RUN|d']],
    ['continued within a word', 'RU\\\nN a\\\nb', ['1|RUN|ab']],
    ['continued to the end', 'RUN a \\\n', ['1|RUN|a']],
    ['continued over comments only', 'RUN a \\\n # b\n # c\n', ['1|RUN|a']],
    ['an escape that is escaped', 'RUN a \\\\\nRUN b', ['1|RUN|a \\\\', '2|RUN|b']],
    ['a comment is none behind something', 'RUN a # b', ['1|RUN|a # b']],
    ['another escape', '# escape=`\nRUN a\\\nRUN b `\nc', ['2|RUN|a\\', '3|RUN|b c']],
    ['directives in any case', '#SYNTAX = x\n# check=skip=all\n# Escape = `\nRUN b `\nc', ['4|RUN|b c']],
    ['after a comment there are no directives', '# c\n# escape=`\nRUN b `\nRUN c', ['3|RUN|b `', '4|RUN|c']],
    ['after an empty line neither', '\n# escape=x\nRUN b', ['3|RUN|b']],
  ])('%s', (_, text, expected) => expect(taken(text)).toEqual(expected))

  test('flags lose their quotes, and end before what is none', () => {
    const [copy] = parseDockerfile('COPY --chown="a b" --exclude=c\\ d --link  -x --y').instructions
    expect(copy).toMatchObject({ flags: ['--chown=a b', '--exclude=c d', '--link'], rest: '-x --y' })
    const [ended] = parseDockerfile('COPY --link -- --a b').instructions
    expect(ended).toMatchObject({ flags: ['--link'], rest: '--a b' })
  })

  test('a syntax that is none of Dockerfiles is warned of', () => {
    const warnings = (syntax: string) => parseDockerfile(`# syntax=${syntax}\nFROM a`).warnings
    expect(warnings('docker/dockerfile:1.4')).toEqual([])
    expect(warnings('docker.io/docker/dockerfile-upstream@sha256:ab')).toEqual([])
    expect(warnings('team/own')).toMatchObject([
      { line: 1, message: expect.stringMatching(/^syntax=team\/own is not used/) },
    ])
  })

  test('an empty line in a continued instruction is warned of', () => {
    const { warnings, instructions } = parseDockerfile('FROM a\nRUN b \\\n\n  c')
    expect(instructions).toHaveLength(2)
    expect(warnings).toMatchObject([{ line: 2 }])
    expect(parseDockerfile('RUN a \\\n').warnings).toEqual([])
  })
})

describe('heredocs', () => {
  test.each<[string, string, object[]]>([
    ['plain', 'RUN <<E\na\n# b\n\nE', [{ name: 'E', expand: true, content: 'a\n# b\n\n' }]],
    ['quoted', 'RUN <<"E"\na\nE', [{ name: 'E', expand: false, content: 'a\n' }]],
    ['quoted in part', "RUN <<E'O'F\na\nEOF", [{ name: 'EOF', expand: false }]],
    ['without tabs', 'RUN <<-E\n\ta\n \tb\n\t\tE', [{ content: 'a\n \tb\n', written: '\ta\n \tb\n' }]],
    ['a name with something after it does not end it', 'RUN <<E\nE \n E\nE', [{ content: 'E \n E\n' }]],
    [
      'several',
      'COPY <<A <<B /x\na\nA\nb\nB',
      [
        { name: 'A', content: 'a\n' },
        { name: 'B', content: 'b\n' },
      ],
    ],
    ['of a file of Windows', 'RUN <<E\r\na\r\nE\r\n', [{ content: 'a\r\n' }]],
    ['with a descriptor', 'RUN cat 3<<E\na\nE', [{ name: 'E' }]],
    ['on a continued line', 'RUN a \\\n <<E\nb\nE', [{ content: 'b\n' }]],
    ['with a blank before its name', 'RUN << E cat > x\na\nE', [{ name: 'E', content: 'a\n' }]],
    ['of a name that is text', 'COPY <<file.txt /x\na\nfile.txt', [{ name: 'file.txt' }]],
    ['of two words', "RUN <<'a b'\nc\na b", [{ name: 'a b', expand: false }]],
    ['of an escaped quote', "RUN <<e\\'f\nc\ne'f", [{ name: "e'f", expand: true }]],
    ['of what looks like a variable', 'RUN <<$E\na\n$E', [{ name: '$E' }]],
    [
      'each within the other',
      'COPY <<X <<Y /d\nY\nX\nX\nY',
      [
        { name: 'X', content: 'Y\n' },
        { name: 'Y', content: 'X\n' },
      ],
    ],
    ['in a trigger', 'ONBUILD RUN <<E\nb\nE', [{ content: 'b\n' }]],
    ['quoted ones are none', 'RUN echo "<<E"', []],
    ['shifts are none', 'RUN echo $((1 << 2)) $((1<<2))', []],
    ['words from a string are none', 'RUN cat <<< a', []],
    ['what is no sentence has none', "RUN echo ' <<E", []],
    ['other instructions have none', 'ENV a=<<E', []],
  ])('%s', (_, text, expected) => expect(parseDockerfile(text).instructions.at(-1)?.heredocs).toMatchObject(expected))

  test('instructions go on after them', () => {
    expect(taken('FROM a\nRUN <<E\nRUN x\nE\nRUN y')).toEqual(['1|FROM|a', '2|RUN|<<E', '5|RUN|y'])
  })
})

describe('refuses', () => {
  test.each<[string, RegExp, number | null]>([
    ['', /no instructions/, null],
    ['# only\n\n', /no instructions/, null],
    ['FROM a\nRUN\0', /zero byte/, 2],
    ['# escape=x\nFROM a', /escape must be/, 1],
    ['# escape=`\n# escape=`\nFROM a', /only one escape/, 2],
    ['FROM a\n\nRUM b', /line 3: unknown instruction "RUM" \(did you mean RUN\?\)/, 3],
    ['FROM a\nAPT-GET b', /unknown instruction "APT-GET"$/, 2],
    ['FROM a\nRUN <<E\nb', /line 2, RUN: the heredoc E does not end/, 2],
    ['FROM --platfrom=x a', /unknown flag --platfrom \(did you mean platform\?\)/, 1],
    ['FROM a AS 1b', /invalid name of a stage/, 1],
    ['FROM a AS scratch', /cannot be named scratch/, 1],
    ['FROM a IS b', /"AS name"/, 1],
    ['FROM a # comment', /"AS name"/, 1],
    ['ARG', /at least one/, 1],
    ['ARG =a', /names cannot be empty/, 1],
    ['ENV', /at least one/, 1],
    ['ENV a', /a name and a value/, 1],
    ['ENV a=1 b', /"b" has no "="/, 1],
    ['ENV =1', /names cannot be empty/, 1],
    ['LABEL a', /a name and a value/, 1],
    ['RUN', /a command is needed/, 1],
    ['RUN --network=host a', /--network=host is refused/, 1],
    ['RUN --network=x a', /must be default or none/, 1],
    ['RUN --security=insecure a', /--security=insecure is refused/, 1],
    ['RUN --device=x a', /--device is refused/, 1],
    ['RUN --mount=type=ssh a', /type=ssh is refused/, 1],
    ['RUN --mount=type=bnid,target=/x a', /unknown type "bnid" \(did you mean bind\?\)/, 1],
    ['RUN --mount=typ=bind a', /unknown key "typ" \(did you mean type\?\)/, 1],
    ['RUN --mount=target a', /target needs a value/, 1],
    ['RUN --mount=type=bind,target=/x,size=3 a', /size is not for type=bind/, 1],
    ['RUN --mount=type=tmpfs,target=/x,size=x a', /size "x" is none/, 1],
    ['RUN --mount=type=tmpfs,target=/x,from=a b', /tmpfs has no from/, 1],
    ['RUN --mount=type=cache,target=/x,sharing=all a', /unknown sharing/, 1],
    ['RUN --mount=type=cache,target=/x,mode=999 a', /mode is no octal mode/, 1],
    ['RUN --mount=type=cache,target=/x,uid=root a', /uid is no id/, 1],
    ['RUN --mount=type=secret a', /needs an id or a target/, 1],
    ['RUN --mount=type=secret,id=a,source=b c', /either id or source/, 1],
    ['RUN --mount=type=secret,id=a,env=1 c', /name of a variable/, 1],
    ['RUN --mount=from=$x,target=/x a', /from takes no variable/, 1],
    ['RUN --mount=type=bind,target=/x,rw=maybe a', /must be true or false/, 1],
    ['RUN --mount= a', /a field is empty/, 1],
    ['RUN --mount=type=bind,,target=/x a', /a field is empty/, 1],
    [`RUN ${'--mount=target=/x '.repeat(33)} a`, /more than 32 mounts/, 1],
    ['RUN ["a", 1]', /strings only/, 1],
    ['COPY a', /at least two/, 1],
    ['COPY', /at least two/, 1],
    ['COPY ["a"]', /at least two/, 1],
    ['COPY --from=$x a b', /--from takes no variable/, 1],
    ['COPY --from= a b', /--from needs a value/, 1],
    ['COPY --from a b', /--from needs a value/, 1],
    ['COPY --link=x a b', /must be true or false/, 1],
    ['COPY --chown=a --chown=b a b', /--chown is there twice/, 1],
    ['COPY --unpack a b', /unknown flag --unpack/, 1],
    ['COPY a <<E\nE', /destination cannot be a heredoc/, 1],
    ['ADD --from=a b c', /unknown flag --from/, 1],
    ['ADD --checksum=sha256:x a b', /--checksum is for what is downloaded/, 1],
    ['ADD --keep-git-dir a b', /--keep-git-dir is for repositories/, 1],
    ['WORKDIR', /exactly one/, 1],
    ['USER --x a', /unknown flag --x/, 1],
    ['VOLUME', /at least one/, 1],
    ['VOLUME [""]', /cannot be empty/, 1],
    ['EXPOSE', /at least one/, 1],
    ['SHELL /bin/sh', /JSON form/, 1],
    ['SHELL []', /at least one/, 1],
    ['CMD', /a command is needed/, 1],
    ['CMD --x', /unknown flag --x/, 1],
    ['HEALTHCHECK', /at least one/, 1],
    ['HEALTHCHECK curl', /"curl" is neither/, 1],
    ['HEALTHCHECK CMD', /needs a command/, 1],
    ['HEALTHCHECK CMD []', /needs a command/, 1],
    ['HEALTHCHECK NONE a', /takes no arguments/, 1],
    ['HEALTHCHECK --interval=5 CMD a', /must be a time/, 1],
    ['HEALTHCHECK --interval=5us CMD a', /at least 1ms/, 1],
    ['HEALTHCHECK --timeout=-1s CMD a', /must be a time/, 1],
    ['HEALTHCHECK --retries=-1 CMD a', /must be a number/, 1],
    ['HEALTHCHECK --start-periode=1s CMD a', /did you mean start-period/, 1],
    ['ONBUILD', /an instruction is needed/, 1],
    ['ONBUILD ONBUILD RUN a', /ONBUILD ONBUILD/, 1],
    ['ONBUILD FROM a', /FROM is not allowed/, 1],
    ['ONBUILD MAINTAINER a', /MAINTAINER is not allowed/, 1],
    ['ONBUILD RUM a', /did you mean RUN/, 1],
    ['ONBUILD RUN --network=host a', /--network=host is refused/, 1],
    ['FROM a\n'.repeat(1001), /more than 1000 instructions/, 1001],
    [`RUN ${'x'.repeat(1024 * 1024)}`, /longer than 1048576 bytes/, null],
  ])('%j', (text, message, line) => {
    const attempt = () => parseDockerfile(text)
    expect(attempt).toThrow(message)
    expect(attempt).toThrow(
      expect.objectContaining({ code: 'dockerfile_invalid', data: expect.objectContaining({ line }) }),
    )
  })
})

test('what is not JSON after all is of the shell form, as with Docker', () => {
  const commands = parseDockerfile(`RUN ['a']\nCMD ["a"] b\nCOPY [a, b]\nENTRYPOINT ["a" ]`).instructions
  expect(commands.map(({ command }) => command)).toMatchObject([
    { line: { shell: "['a']" } },
    { line: { shell: '["a"] b' } },
    { sources: ['[a,'], destination: 'b]' },
    { line: { words: ['a'] } },
  ])
})

describe('whatever is written', () => {
  test('there is a Dockerfile or a failure', () => {
    const text = fc.oneof(
      fc.string({ maxLength: 60, unit: 'binary' }),
      fc
        .array(
          fc.constantFrom(
            'RUN',
            ' ',
            '\n',
            '\\',
            '`',
            '<<E',
            'E',
            '"',
            "'",
            '$',
            '{',
            '}',
            '#',
            'escape=`',
            '\r',
            '\t',
            'COPY',
            'a',
            '--mount=',
            ',',
            '[',
            ']',
            'ENV',
          ),
          { maxLength: 40 },
        )
        .map((parts) => parts.join('')),
    )
    fc.assert(
      fc.property(text, (written) => {
        try {
          parseDockerfile(written)
        } catch (error) {
          expect(error).toBeInstanceOf(Failure)
        }
      }),
      { numRuns: 1000 },
    )
  })

  test('instructions that are printed are parsed to what they were', () => {
    const word = fc.stringMatching(/^[a-z$./]{1,8}$/)
    const words = fc.array(word, { minLength: 2, maxLength: 4 })
    const blank = fc.constantFrom(' ', '  ', ' \\\n  ', ' \\\n# a comment\n\t')
    const one = fc.oneof(
      words.map((of) => ({ keyword: 'RUN', flags: [] as string[], of })),
      fc.tuple(words, word).map(([of, name]) => ({ keyword: 'COPY', flags: [`--chown=${name}`], of })),
      words.map((of) => ({ keyword: 'ENTRYPOINT', flags: [] as string[], of: [JSON.stringify(of)] })),
    )
    fc.assert(
      fc.property(fc.array(one, { minLength: 1, maxLength: 6 }), blank, (all, between) => {
        const text = all.map(({ keyword, flags, of }) => [keyword, ...flags, ...of].join(between)).join('\n\n')
        const found = parseDockerfile(text).instructions
        expect(found.map(({ keyword }) => keyword)).toEqual(all.map(({ keyword }) => keyword))
        expect(found.map(({ flags }) => flags)).toEqual(all.map(({ flags }) => flags))
        expect(found.map(({ rest }) => rest.split(/\s+/))).toEqual(all.map(({ of }) => of))
      }),
    )
  })
})
