/** Light or dark: as the system, or as chosen. */

import { byId } from './dom'

const NAME = 'mindllm-theme'

export function installTheme(): void {
  const choice = byId<HTMLSelectElement>('theme')
  const apply = (): void => {
    if (choice.value) document.documentElement.dataset.theme = choice.value
    else delete document.documentElement.dataset.theme
  }
  choice.value = localStorage.getItem(NAME) ?? ''
  choice.addEventListener('change', () => {
    localStorage.setItem(NAME, choice.value)
    apply()
  })
  apply()
}
