// Before anything is drawn: the theme that was chosen, if one was. No choice: what the system prefers.
try {
  const theme = localStorage.getItem('berth-theme')
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
} catch {
  // Storage is off: then the system's preference holds.
}
