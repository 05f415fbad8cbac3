// sheet.ts: a <style> element that is none: its text is a constructed style sheet of the document while it is in it. The
// page's policy allows no inline style, and a constructed sheet is not inline. For xterm.js; see ../xterm-style.ts.
class Sheet extends HTMLElement {
  readonly #sheet = new CSSStyleSheet()
  #text = ''

  override get textContent(): string {
    return this.#text
  }

  override set textContent(text: string) {
    this.#text = text
    this.#sheet.replaceSync(text)
  }

  connectedCallback(): void {
    this.hidden = true
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, this.#sheet]
  }

  disconnectedCallback(): void {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((sheet) => sheet !== this.#sheet)
  }
}

customElements.define('berth-sheet', Sheet)
