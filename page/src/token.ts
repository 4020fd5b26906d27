/** Asks for the token that the server wants. */

import { byId } from './dom'

/** Shows the dialog with a reason; resolves with what was typed. It cannot be closed without. */
export function askToken(reason: string): Promise<string> {
  const dialog = byId<HTMLDialogElement>('token-dialog')
  const input = byId<HTMLInputElement>('token')
  const form = byId<HTMLFormElement>('token-form')
  byId('token-reason').textContent = reason
  input.value = ''
  dialog.showModal()
  input.focus()
  return new Promise((resolve) => {
    const stay = (event: Event): void => event.preventDefault()
    dialog.addEventListener('cancel', stay)
    form.onsubmit = (event) => {
      event.preventDefault()
      const token = input.value.trim()
      if (token === '') {
        input.focus()
        return
      }
      input.value = ''
      dialog.removeEventListener('cancel', stay)
      dialog.close()
      resolve(token)
    }
  })
}
