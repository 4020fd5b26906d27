/** Questions and their answers: each answer streams into a card, its evidence follows. */

import type { Api, Message, ModelInfo, Scan, WordInfo } from './api'
import type { BrainPanel } from './brain'
import { announce, byId, el, newId, number, showError } from './dom'
import { showEvidence } from './evidence'

/** A scan that a question is put to. */
export interface Addressee {
  scan: Scan
  label: string
  brain: BrainPanel
}

/** Turns of the conversation about a scan; a follow-up sends them again. */
interface Turn {
  question: string | null
  answer: string
}

export class Conversation {
  private readonly list = byId('answers')
  private readonly histories = new Map<string, Turn[]>()
  private running: AbortController | null = null

  constructor(
    private readonly api: Api,
    private readonly model: ModelInfo,
  ) {}

  /** Asks all at once; resolves when every answer is complete. */
  async ask(question: string | null, to: Addressee[], isFollowUp: boolean): Promise<void> {
    const running = new AbortController()
    this.running = running
    const id = newId('question')
    const cards = to.map((addressee) => new Card(this.api, this.model, addressee))
    const asked = question ?? `${defaultQuestion(this.model)} (the model’s own question)`
    const turn = el(
      'article',
      { class: 'turn', 'aria-labelledby': id },
      el('h3', { id, tabindex: '-1' }, isFollowUp ? 'Follow-up: ' : '', asked),
      el('div', { class: cards.length > 2 ? 'cards pairs' : 'cards' }, ...cards.map((card) => card.element)),
    )
    this.list.prepend(turn)
    byId('no-answers').hidden = true
    await Promise.all(
      cards.map(async (card, i) => {
        const { scan } = to[i] as Addressee
        const key = JSON.stringify(scan)
        const history = isFollowUp ? (this.histories.get(key) ?? []) : []
        const answer = await card.ask(question, history, running.signal)
        if (answer !== null) this.histories.set(key, [...history, { question, answer }])
      }),
    )
    this.running = null
  }

  /** Whether all these scans have been asked something. */
  canFollowUp(scans: Scan[]): boolean {
    return scans.length > 0 && scans.every((scan) => this.histories.has(JSON.stringify(scan)))
  }

  stop(): void {
    this.running?.abort()
  }
}

/** The question that the model was trained with, without its mark for the scan. */
export function defaultQuestion(model: ModelInfo): string {
  return model.mindllm.question.replaceAll('<fMRI>', '').trim()
}

/** An answer about one scan. */
class Card {
  readonly element: HTMLElement
  private readonly answer = el('p', { class: 'answer', 'aria-live': 'polite', 'aria-busy': 'true' })
  private readonly error = el('p', { class: 'error', role: 'alert', hidden: true })
  private readonly details = el('div')

  constructor(
    private readonly api: Api,
    private readonly model: ModelInfo,
    private readonly to: Addressee,
  ) {
    const id = newId('card')
    this.element = el(
      'section',
      { class: 'card', 'aria-labelledby': id },
      el('h4', { id }, to.label),
      this.answer,
      this.error,
      this.details,
    )
  }

  /** The answer; null: it failed or was stopped. */
  async ask(question: string | null, history: Turn[], signal: AbortSignal): Promise<string | null> {
    const body = { model: this.model.id, messages: this.messages(question, history) }
    let text = ''
    this.answer.classList.add('streaming')
    try {
      const evidence = await this.api.chat(
        body,
        (piece) => {
          text += piece
          this.answer.textContent = text
        },
        signal,
      )
      const isEmpty = text.trim() === ''
      if (isEmpty) this.answer.textContent = 'The model gave an empty answer.'
      if (evidence) this.details.append(showEvidence(text, evidence))
      if (!isEmpty) await this.addWords(question, text, history.length > 0, typeof evidence?.evidence === 'number')
      return text
    } catch (error) {
      const isStopped = signal.aborted
      showError(this.error, isStopped ? 'Stopped; the answer is not complete.' : error)
      return null
    } finally {
      this.answer.classList.remove('streaming')
      this.answer.setAttribute('aria-busy', 'false')
    }
  }

  /** The conversation as the server takes it: the scan stands in its first message. */
  private messages(question: string | null, history: Turn[]): Message[] {
    const turns: Message[] = []
    for (const [i, turn] of [...history, { question, answer: '' }].entries()) {
      // without a text, the first message asks the model's own question
      const text = turn.question ?? (i > 0 ? defaultQuestion(this.model) : null)
      const parts: Exclude<Message['content'], string> = []
      if (text !== null) parts.push({ type: 'text', text })
      if (i === 0) parts.push({ type: 'fmri', fmri: this.to.scan })
      turns.push({ role: 'user', content: parts })
      if (i < history.length) turns.push({ role: 'assistant', content: turn.answer })
    }
    return turns
  }

  /** Words to choose, before the evidence: each shows the voxels that it came from. */
  private async addWords(
    question: string | null, text: string, isFollowUp: boolean, hasEvidence: boolean,
  ): Promise<void> {
    const box = el('div', { class: 'words' })
    this.details.prepend(box)
    if (isFollowUp) {
      const reason = 'Words of a follow-up are not mapped: an explanation takes one question.'
      box.append(el('p', { class: 'note' }, reason))
      return
    }
    const { scan, label, brain } = this.to
    try {
      const body = { model: this.model.id, fmri: scan, answer: text, question }
      const words = await this.api.words(body)
      const id = newId('words')
      const hint = 'Choose a word to see its voxels. Below it: nats that the scan adds to its likelihood.'
      const group = el('div', { role: 'group', 'aria-labelledby': id, class: 'word-list' })
      const choose = (button: HTMLElement, show: () => Promise<void>): void => {
        for (const other of document.querySelectorAll('[data-map][aria-pressed="true"]')) {
          other.setAttribute('aria-pressed', 'false')
        }
        button.setAttribute('aria-pressed', 'true')
        announce(`Computing voxels of ${button.dataset.map ?? ''}.`)
        void show()
      }
      for (const word of words) {
        const button = wordButton(word)
        button.addEventListener('click', () =>
          choose(button, () => brain.showWord(scan, label, text, question, word.word, word.text)),
        )
        group.append(button)
      }
      box.append(el('p', { class: 'note', id }, hint), group)
      if (hasEvidence) {
        const all = el('button', { type: 'button', class: 'quiet', 'aria-pressed': 'false' })
        all.textContent = 'Voxels that speak for the whole answer'
        all.dataset.map = 'the answer'
        all.addEventListener('click', () =>
          choose(all, () => brain.showEvidence(scan, label, text)),
        )
        box.append(all)
      }
    } catch (error) {
      const message = el('p', { class: 'error', role: 'alert' })
      showError(message, error)
      box.append(message)
    }
  }
}

function wordButton(word: WordInfo): HTMLButtonElement {
  const gain = word.log_likelihood - word.at_zero
  const text = gain > 0 ? `+${number(gain)}` : number(gain)
  const button = el(
    'button',
    { type: 'button', class: gain < 0 ? 'word against' : 'word', 'aria-pressed': 'false' },
    el('span', {}, word.text),
    el('small', {}, text, el('span', { class: 'hidden' }, ' nats')),
  )
  button.dataset.map = word.text
  return button
}
