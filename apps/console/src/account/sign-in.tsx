import { createSession, type Session } from '@berth/contracts'
import { type Api } from '../api.js'
import { ThemeButton } from '../theme.js'
import { Field, Form, Notice } from '../ui.js'

/** Takes a key and begins a session. The key is sent once; what stays is a cookie that no script can read. */
export function SignIn({
  api,
  why,
  onSession,
}: {
  readonly api: Api
  readonly why: string | undefined
  readonly onSession: (session: Session) => void
}) {
  const send = async ({ apiKey = '' }: Readonly<Record<string, string>>) =>
    onSession(await api.call(createSession, { body: { apiKey: apiKey.trim() } }))
  return (
    <main className="sign-in">
      <div className="card">
        <h1>
          <img src={`${import.meta.env.BASE_URL}icon.svg`} alt="" width="32" height="32" />
          Berth
        </h1>
        {why && <Notice>{why}</Notice>}
        <Form send={send} submit="Sign in" fields={['apiKey']}>
          <Field label="API key" name="apiKey" hint="Begins with brt_. It is sent once, and not kept in this browser.">
            {(input) => (
              <input
                {...input}
                type="password"
                autoComplete="off"
                spellCheck={false}
                maxLength={256}
                required
                // biome-ignore lint/a11y/noAutofocus: the page has nothing else to begin with
                autoFocus
              />
            )}
          </Field>
        </Form>
      </div>
      <ThemeButton />
    </main>
  )
}
