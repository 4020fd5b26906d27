/** Elements, and numbers as text. */

type Child = Node | string | null | undefined | false
type Attributes = Record<string, string | number | boolean | undefined>

/** An element with attributes and children; `true` is an attribute without a value. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  set(element, attributes)
  element.append(...children.filter((child): child is Node | string => Boolean(child)))
  return element
}

/** An SVG element. */
export function svg(tag: string, attributes: Attributes = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  set(element, attributes)
  element.append(...children.filter((child): child is Node | string => Boolean(child)))
  return element
}

function set(element: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue
    element.setAttribute(name, value === true ? '' : String(value))
  }
}

/** The element of the page with an id. */
export function byId<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id)
  if (element === null) throw new Error(`the page has no element ${id}`)
  return element as T
}

let count = 0
/** An id that no other element has. */
export function newId(prefix: string): string {
  count += 1
  return `${prefix}-${count}`
}

/** A number with three significant digits and a true minus sign. */
export function number(value: number): string {
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size < 0.001) return value.toExponential(1).replaceAll('-', '−')
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3
  return value.toFixed(digits).replace('-', '−')
}

/** A fraction in percent. */
export function percent(fraction: number): string {
  const value = 100 * fraction
  return `${value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : number(value)} %`
}

/** A bar of a length between 0 and 1, for tables that have the number beside it. */
export function bar(length: number, kind = 'plain'): HTMLElement {
  const width = `${(100 * Math.min(Math.max(length, 0), 1)).toFixed(1)}%`
  return el(
    'span',
    { class: 'bar', 'aria-hidden': 'true' },
    el('span', { class: `bar-${kind}`, style: `inline-size:${width}` }),
  )
}

/** Text that a screen reader says once, by way of the page's status line. */
export function announce(text: string): void {
  byId('status').textContent = text
}

/** Shows a sentence about what went wrong where it belongs, or removes it. */
export function showError(where: HTMLElement, error: unknown): void {
  if (error === null) {
    where.textContent = ''
    where.hidden = true
    return
  }
  where.textContent = sentence(error)
  where.hidden = false
}

/** One sentence that begins with a capital letter. */
export function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return /^[a-z]+[ ,']/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text
}
