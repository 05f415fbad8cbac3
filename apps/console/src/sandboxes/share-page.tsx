// share-page.tsx: a terminal by its link, for who has no key. The token is in the fragment, which browsers do not send:
// it is in no request for a page, no log of one, and no Referer.
import { connectShare } from '@berth/contracts'
import { useSyncExternalStore } from 'react'
import { socketUrl } from '../api.js'
import { ThemeButton } from '../theme.js'
import { Notice } from '../ui.js'
import { TerminalView } from './terminal.js'

const onHash = (told: () => void) => {
  addEventListener('hashchange', told)
  return () => removeEventListener('hashchange', told)
}

export default function SharePage() {
  const token = useSyncExternalStore(onHash, () => location.hash.slice(1))
  return (
    <main className="share-page">
      <header className="top">
        <span className="brand">
          <img src={`${import.meta.env.BASE_URL}icon.svg`} alt="" width="24" height="24" />
          Berth
        </span>
        <h1>Shared terminal</h1>
        <div className="top-end">
          <ThemeButton />
        </div>
      </header>
      {token === '' ? (
        <Notice kind="error">The link is not whole: what follows the # is missing.</Notice>
      ) : (
        <Shared key={token} token={token} />
      )}
    </main>
  )
}

function Shared({ token }: { readonly token: string }) {
  const url = (since: number | undefined) => socketUrl(connectShare, { params: { token }, query: { since } })
  return <TerminalView url={url} shown label="Shared terminal" />
}
