import type { ITheme } from '@xterm/xterm'

// Both pass 4.5:1 for the plain colours on their ground, but for black on dark and white on light, which programs use as
// grounds themselves.
const dark: ITheme = {
  ...{ background: '#10171b', foreground: '#dbe4e8', cursor: '#8fd6e4', selectionBackground: '#2f5561' },
  ...{ black: '#2b363c', red: '#ff7b72', green: '#6fd08c', yellow: '#e3b341', blue: '#79b8ff', magenta: '#d2a8ff' },
  ...{ cyan: '#62d4e3', white: '#c9d4d9', brightBlack: '#7d8b92', brightRed: '#ffa198', brightGreen: '#8ee6a5' },
  ...{ brightYellow: '#f2cc60', brightBlue: '#a5d6ff', brightMagenta: '#e2c5ff', brightCyan: '#9be9f2' },
  brightWhite: '#ffffff',
}
const light: ITheme = {
  ...{ background: '#fbfcfc', foreground: '#1c2528', cursor: '#0f5c6e', selectionBackground: '#b9dde5' },
  ...{ black: '#1c2528', red: '#b3261e', green: '#1a6b35', yellow: '#7a5200', blue: '#0b57b0', magenta: '#8a2fa0' },
  ...{ cyan: '#0b6a7a', white: '#d5dcdf', brightBlack: '#5b686e', brightRed: '#c7372f', brightGreen: '#217a41' },
  ...{ brightYellow: '#8a5d00', brightBlue: '#1b69c9', brightMagenta: '#9b3fb1', brightCyan: '#0d7688' },
  brightWhite: '#8a979d',
}

export const themeOf = (isDark: boolean): ITheme => (isDark ? dark : light)
