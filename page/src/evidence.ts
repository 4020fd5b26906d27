/** What speaks for an answer: sentences, a table and a histogram. */

import type { AnswerEvidence } from './api'
import { bar, el, newId, number, percent, svg } from './dom'

const NAMES: Record<string, string> = {
  log_likelihood_ratio: 'log-likelihood ratio',
  evidence: 'evidence',
  probability: 'probability',
  alternatives: 'alternatives',
  shuffled: 'comparison with other trials',
  abstained: 'abstention',
}
const WIDTH = 360
const HEIGHT = 120
const MARGIN = { top: 22, bottom: 20, side: 12 }

/** Everything the server says of an answer. */
export function showEvidence(answer: string, facts: AnswerEvidence): HTMLElement {
  return el(
    'div',
    { class: 'evidence' },
    facts.abstained && abstention(facts),
    el('dl', { class: 'facts' }, ...factList(facts)),
    facts.alternatives && alternatives(answer, facts),
    facts.shuffled && facts.evidence !== null && histogram(facts.evidence, facts.shuffled),
    facts.missing.length > 0 && missing(facts),
  )
}

function abstention(facts: AnswerEvidence): HTMLElement {
  const limit = percent(facts.abstain_below)
  const text = `The model abstains: it gives this answer less than ${limit}. Do not rely on it.`
  return el('p', { class: 'abstained' }, el('strong', {}, text))
}

function factList(facts: AnswerEvidence): HTMLElement[] {
  const rows: [string, string | null, string][] = [
    [
      'Probability',
      facts.probability === null ? null : percent(facts.probability),
      `among ${facts.n_proposals ?? 0} texts, equally likely beforehand`,
    ],
    [
      'Evidence',
      facts.evidence === null ? null : `${number(facts.evidence)} nats`,
      'log p(scan given the answer) − log p(scan)',
    ],
    [
      'Log-likelihood ratio',
      facts.log_likelihood_ratio === null ? null : `${number(facts.log_likelihood_ratio)} nats`,
      'of the language model, with and without the scan; nearly always positive',
    ],
  ]
  return rows
    .filter(([, value]) => value !== null)
    .map(([name, value, meaning]) =>
      el(
        'div',
        {},
        el('dt', {}, name),
        el('dd', {}, el('b', {}, value), ' ', el('span', { class: 'note' }, meaning)),
      ),
    )
}

/** The answer and the likeliest other texts, with bars of their probability. */
function alternatives(answer: string, facts: AnswerEvidence): HTMLElement {
  const rows = [...(facts.alternatives ?? [])]
  if (facts.evidence !== null && facts.probability !== null) {
    rows.push({ text: answer, evidence: facts.evidence, probability: facts.probability })
  }
  rows.sort((a, b) => b.probability - a.probability)
  const most = Math.max(...rows.map((row) => row.probability), 1e-12)
  return el(
    'table',
    {},
    el('caption', {}, 'Likeliest texts'),
    head('Text', 'Evidence (nats)', 'Probability'),
    el(
      'tbody',
      {},
      ...rows.map((row) =>
        el(
          'tr',
          { class: row.text === answer ? 'chosen' : undefined },
          el('th', { scope: 'row' }, row.text, row.text === answer && ' (the answer)'),
          el('td', { class: 'number' }, number(row.evidence)),
          el('td', { class: 'with-bar' }, percent(row.probability), bar(row.probability / most)),
        ),
      ),
    ),
  )
}

/** The head of a table. */
export function head(...names: string[]): HTMLElement {
  return el('thead', {}, el('tr', {}, ...names.map((name) => el('th', { scope: 'col' }, name))))
}

/** Evidence of other trials for the same answer, and of the scan itself. */
function histogram(own: number, shuffled: NonNullable<AnswerEvidence['shuffled']>): HTMLElement {
  const { values } = shuffled
  const low = Math.min(own, ...values)
  const high = Math.max(own, ...values)
  const range = high - low || 1
  const bins = Math.min(24, Math.max(5, Math.ceil(Math.sqrt(values.length) * 1.5)))
  const counts = new Array<number>(bins).fill(0)
  for (const value of values) {
    const bin = Math.min(bins - 1, Math.floor((bins * (value - low)) / range))
    counts[bin] = (counts[bin] ?? 0) + 1
  }
  const most = Math.max(...counts, 1)
  const inner = WIDTH - 2 * MARGIN.side
  const x = (value: number): number => MARGIN.side + (inner * (value - low)) / range
  const base = HEIGHT - MARGIN.bottom
  const step = inner / bins
  const bars = counts.map((count, bin) => {
    const height = ((base - MARGIN.top) * count) / most
    const left = MARGIN.side + bin * step
    return svg('rect', { class: 'bin', x: left + 0.5, y: base - height, width: step - 1, height })
  })
  const atOwn = x(own)
  const anchor = atOwn > WIDTH - 60 ? 'end' : atOwn < 60 ? 'start' : 'middle'
  const id = newId('histogram')
  const picture = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-labelledby': id, class: 'histogram' },
    ...bars,
    svg('line', { class: 'axis', x1: MARGIN.side, x2: WIDTH - MARGIN.side, y1: base, y2: base }),
    svg('line', { class: 'own', x1: atOwn, x2: atOwn, y1: MARGIN.top - 6, y2: base }),
    svg('text', { x: atOwn, y: 12, 'text-anchor': anchor, class: 'own-label' }, 'this scan'),
    svg('text', { x: MARGIN.side, y: HEIGHT - 5 }, number(low)),
    svg('text', { x: WIDTH - MARGIN.side, y: HEIGHT - 5, 'text-anchor': 'end' }, number(high)),
    svg('text', { x: WIDTH / 2, y: HEIGHT - 5, 'text-anchor': 'middle' }, 'evidence (nats)'),
  )
  const [first, last] = [values[0] ?? own, values.at(-1) ?? own]
  const text =
    `This scan: ${number(own)} nats. ${values.length} ${shuffled.of}: mean ` +
    `${number(shuffled.mean)}, standard deviation ${number(shuffled.sd)}, from ${number(first)} ` +
    `to ${number(last)}. p = ${number(shuffled.p_value)}, the fraction of them, this scan ` +
    'counted, that reach its evidence.'
  return el(
    'figure',
    {},
    picture as unknown as HTMLElement,
    el('figcaption', { id }, el('b', {}, 'Evidence of other trials for the same answer. '), text),
  )
}

function missing(facts: AnswerEvidence): HTMLElement {
  const items = facts.missing.map(({ name, reason }) =>
    el('li', {}, `${NAMES[name] ?? name.replaceAll('_', ' ')}: ${reason}`),
  )
  return el('div', { class: 'missing' }, el('b', {}, 'Not said'), el('ul', {}, ...items))
}
