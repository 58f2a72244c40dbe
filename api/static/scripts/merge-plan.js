// The plan of a composition, asked for while one chooses; answers to earlier questions are discarded.

import { byId, bytes, count, duration, element, errorNotice, fill, json, LANGUAGE } from "./page.js";
import { sentence } from "./sentences.js";

const DELAY_MS = 250;
const number = (value) => new Intl.NumberFormat(LANGUAGE).format(value);

const ADAPTER_CODES = [
  "wrong_adapter_order", "vocabulary_mismatch", "adapter_mismatch", "unknown_adapter_key", "incomplete_adapter", "shape_mismatch",
  "unsupported_adapter",
];
const BASE_CODES = ["wrong_model_kind", "incomplete_checkpoint", "unknown_tensor", "config_mismatch"];
const OUTPUT_CODES = ["unsupported_option", "unsupported_format", "model_exists", "invalid_name"];
const ADAPTER_FIELDS = ["adapters"];
const PLAN_FIELDS = ["kind", "after", "metadata"];

/** Returns the part of the page that an error is about. A format is refused for the base's own if nothing is converted. */
function placeOf({ code, errors }, isConverted) {
  if (code === "unsupported_format" && !isConverted) return "base";
  const field = errors?.[0]?.loc[0];
  if (ADAPTER_CODES.includes(code) || ADAPTER_FIELDS.includes(field)) return "adapters";
  if (BASE_CODES.includes(code) || field === "base") return "base";
  if (OUTPUT_CODES.includes(code) || (field && !PLAN_FIELDS.includes(field))) return "output";
  return "plan";
}

const places = () => document.querySelectorAll("[data-place]");
const placeNamed = (name) => document.querySelector(`[data-place="${name}"]`) ?? document.querySelector('[data-place="plan"]');

export class PlanView {
  #timer = null;
  #asked = null;

  /** `onAnswer(isPossible)` is called with each answer, and with false when the question changes; `onOrder(names)` takes a proposed order. */
  constructor(texts, { onAnswer, onOrder }) {
    this.texts = texts;
    this.onAnswer = onAnswer;
    this.onOrder = onOrder;
  }

  /** Asks for the plans of these requests in a moment; `facts` describe the composition. */
  ask(requests, facts) {
    this.#drop();
    this.#state("checking");
    byId("plan").querySelector(":scope > .soft")?.remove();
    byId("plan").setAttribute("aria-busy", "true");
    this.#timer = setTimeout(() => this.#send(requests, facts), DELAY_MS);
  }

  /** Shows why there is nothing to plan yet. */
  idle(text) {
    this.#drop();
    this.#clear();
    this.#state(null);
    byId("plan").replaceChildren(element("p", { class: "soft" }, text));
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#asked?.abort();
    this.onAnswer(false);
  }

  async #send(requests, facts) {
    const asked = new AbortController();
    this.#asked = asked;
    const send = (body) => json("/api/jobs?dry_run=true", { body, signal: asked.signal });
    try {
      const plans = await Promise.all(requests.map(send));
      if (asked.signal.aborted) return;
      this.#clear();
      this.#show(plans, facts);
      this.#state("fits", "ok");
      this.onAnswer(true);
    } catch (error) {
      if (asked.signal.aborted) return;
      asked.abort(); // the other requests of this question
      this.#clear();
      this.#refuse(error, facts);
    }
  }

  #clear() {
    for (const place of places()) place.replaceChildren();
    byId("plan").removeAttribute("aria-busy");
  }

  #state(text, kind = null) {
    for (const badge of document.querySelectorAll("[data-plan-state]")) {
      badge.hidden = !text;
      badge.textContent = text ? this.texts[text] : "";
      if (kind) badge.dataset.kind = kind;
      else delete badge.dataset.kind;
    }
  }

  #refuse(error, { isConverted }) {
    const name = error.problem ? placeOf(error.problem, isConverted) : "plan";
    const place = placeNamed(name);
    place.append(errorNotice(error));
    const order = error.problem?.order;
    if (order?.length) place.append(this.#proposal(order));
    place.closest("details")?.setAttribute("open", "");
    this.#state(error.problem ? "refused" : "noAnswer", "error");
    const there = place.dataset.place === "plan" ? [] : [element("a", { href: `#${name}-title` }, fill(this.texts.seeReason, { place: this.texts.places[name] }))];
    byId("plan").replaceChildren(...there);
  }

  #proposal(order) {
    const names = order.map((name) => element("li", {}, name));
    return element("div", { class: "merge-order" }, element("span", {}, this.texts.rightOrder), element("ol", {}, names),
      element("button", { type: "button", onclick: () => this.onOrder(order) }, this.texts.useOrder));
  }

  // ---- a plan that runs ----

  #show(plans, facts) {
    byId("plan").replaceChildren(this.#flow(plans[0], facts), this.#figures(plans), ...this.#warnings(plans));
    byId("announce").textContent = `${this.texts.fits}: ${bytes(plans[0].output_bytes)}`;
  }

  #flow(plan, { base, adapters, format }) {
    const step = (name, ...details) => element("li", {}, element("strong", { class: "wrap" }, name),
      element("span", { class: "soft" }, details.filter(Boolean).join(" · ")));
    let rows = base.vocabulary;
    const added = adapters.map(({ name, scale, vocabulary }) => {
      const grows = vocabulary && rows && vocabulary > rows;
      const words = grows ? fill(this.texts.tokensGrow, { from: number(rows), to: number(vocabulary) })
        : vocabulary && fill(this.texts.replacesRows, { to: number(vocabulary) });
      rows = vocabulary || rows;
      return step(name, words, scale !== 1 && fill(this.texts.scaled, { scale: number(scale) }));
    });
    const { name, tensors, vocabulary_size: vocabulary } = plan.writes;
    const ends = vocabulary === base.vocabulary ? this.texts.tokensKept : this.texts.tokensGrow;
    return element("ol", { class: "plain merge-flow" },
      step(base.name, base.kind === "original" ? this.texts.original : "Hugging Face", base.parameters && count(base.parameters), bytes(base.size),
        base.isRounded && this.texts.rounded),
      added,
      step(name, format, fill(this.texts.tensors, { n: number(tensors) }),
        vocabulary && fill(ends, { from: number(base.vocabulary), to: number(vocabulary) })));
  }

  #figures(plans) {
    const { texts } = this;
    const sum = (field) => plans.reduce((total, plan) => total + plan[field], 0);
    const [needed, free] = [sum("disk_needed_bytes"), plans[0].disk_free_bytes];
    const rows = [
      ...plans.map((plan, index) => [index ? plan.writes.name : texts.size, bytes(plan.output_bytes)]),
      [texts.memory, bytes(Math.max(...plans.map((plan) => plan.peak_memory_bytes)))],
      [texts.disk, element("span", {}, fill(texts.diskUse, { needed: bytes(needed), free: bytes(free) }),
        plans[0].disk_reserved_bytes ? `; ${fill(texts.reserved, { bytes: bytes(plans[0].disk_reserved_bytes) })}` : null,
        element("progress", { max: Math.max(1, free), value: Math.min(needed, free), "aria-label": texts.disk }))],
      plans.every((plan) => plan.estimated_seconds) && [texts.time, fill(texts.aboutTime, { time: duration(sum("estimated_seconds")) })],
      [texts.tokenizerOf, plans[0].writes.tokenizer_of],
    ];
    return element("dl", { class: "facts" }, rows.filter((row) => row && row[1])
      .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  #warnings(plans) {
    const found = [...new Set(plans.flatMap((plan) => plan.warnings))];
    if (!found.length) return [];
    return [element("div", { class: "notice", "data-kind": "warning" }, element("strong", {}, this.texts.warnings),
      found.map((text) => element("p", {}, sentence(text))))];
  }
}
