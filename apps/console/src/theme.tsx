import { useSyncExternalStore } from 'react'

export type Theme = 'system' | 'light' | 'dark'
const KEY = 'berth-theme'
const changed = new EventTarget()

function read(): Theme {
  const { theme } = document.documentElement.dataset
  return theme === 'light' || theme === 'dark' ? theme : 'system'
}

/** Sets the theme, and keeps it in this browser (public/theme.js reads it before the page is drawn). */
function choose(theme: Theme): void {
  if (theme === 'system') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = theme
  try {
    if (theme === 'system') localStorage.removeItem(KEY)
    else localStorage.setItem(KEY, theme)
  } catch {
    // Storage is off: the choice holds until the page is left.
  }
  changed.dispatchEvent(new Event('change'))
}

const prefersDark = () => matchMedia('(prefers-color-scheme: dark)')

function subscribe(told: () => void): () => void {
  const system = prefersDark()
  changed.addEventListener('change', told)
  system.addEventListener('change', told)
  return () => {
    changed.removeEventListener('change', told)
    system.removeEventListener('change', told)
  }
}

/** What is shown now, whoever decided it. */
export function useDark(): boolean {
  return useSyncExternalStore(subscribe, () => (read() === 'system' ? prefersDark().matches : read() === 'dark'))
}

const next: Readonly<Record<Theme, Theme>> = { system: 'light', light: 'dark', dark: 'system' }
const marks: Readonly<Record<Theme, string>> = { system: '◐', light: '☀', dark: '☾' }

export function ThemeButton() {
  const theme = useSyncExternalStore(subscribe, read)
  return (
    <button
      type="button"
      className="plain"
      onClick={() => choose(next[theme])}
      aria-label={`Theme: ${theme}`}
      title={`Theme: ${theme}; press for ${next[theme]}`}
    >
      <span aria-hidden="true">{marks[theme]}</span>
    </button>
  )
}
