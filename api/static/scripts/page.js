// Shared by the scripts of all pages: elements, texts, formats, requests, notices.

import { sentence } from "./sentences.js";

export const ENDED = ["succeeded", "failed", "canceled"];
export const byId = (id) => document.getElementById(id);
export const LANGUAGE = document.documentElement.lang;

/** Creates an element. Text never becomes markup; a function as attribute is a listener, null leaves an attribute or a child out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.replace(/^on/, ""), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Returns a drawing of the page's icons, which assistive technology leaves out. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Returns the translated texts that the page carries in a data block. */
export function textsOf(id) {
  const block = byId(id);
  return block ? JSON.parse(block.textContent) : {};
}

/** Fills `{name}` in a text. */
export function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const layoutTexts = textsOf("layout-texts");

// ---- formats: the same as in api/pages/layout.py ----

const scaled = (value, units) => {
  let size = Number(value);
  let unit = units[0];
  for (unit of units) {
    if (Math.abs(size) < 1000 || unit === units[units.length - 1]) break;
    size /= 1000;
  }
  const digits = unit === units[0] ? 0 : Math.abs(size) >= 10 ? 1 : 2;
  const number = new Intl.NumberFormat(LANGUAGE, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(size);
  return `${number} ${unit}`.trim();
};

export const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"]);
export const count = (value) => scaled(value, ["", "K", "M", "B", "T"]);

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const parts = [];
  let rest = Math.round(seconds);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    if (rest >= size) parts.push(`${Math.floor(rest / size)} ${unit}`);
    rest %= size;
  }
  return parts.slice(0, 2).join(" ");
}

const moment = new Intl.DateTimeFormat(LANGUAGE, { dateStyle: "medium", timeStyle: "short" });

/** Shows `<time datetime>` elements in local time, with the zone as a tooltip. */
export function localizeTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const date = new Date(time.dateTime);
    time.textContent = moment.format(date);
    time.title = date.toString();
    time.dataset.local = "";
  }
}

// ---- requests ----

/** An error response of the API: `problem` is its body. */
export class ApiError extends Error {
  constructor(status, problem, path) {
    super([problem.detail, problem.hint].filter(Boolean).join(" ") || `${path}: ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

export const csrfToken = () => document.querySelector('meta[name="csrf-token"]')?.content;

/** Sends a request to the API. Throws ApiError for an error response; an ended session leads to the page for signing in. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = csrfToken();
  if (token) headers.set("X-CSRF-Token", token);
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => ({})), path);
  return response;
}

/** Sends a request and returns the JSON of its response; `body` is sent as JSON. */
export async function json(path, { body, ...options } = {}) {
  const sent = body === undefined ? options
    : { method: "POST", ...options, headers: { "Content-Type": "application/json", ...options.headers }, body: JSON.stringify(body) };
  const response = await request(path, sent);
  return response.status === 204 ? null : response.json();
}

// ---- notices ----

const TOAST_MS = 8000;

/** Returns a notice of an error: the finding, then the remedy. */
export function errorNotice(error) {
  const { detail, hint, code } = error.problem ?? {};
  return element("div", { class: "notice", "data-kind": "error", role: "alert" },
    element("p", {}, sentence(detail ?? error.message, code)), hint ? element("p", { class: "soft" }, sentence(hint)) : null);
}

/** Returns a notice of the error of a job or of an output. */
export const failureNotice = ({ message, ...error }) => errorNotice({ problem: { ...error, detail: message } });

/** Shows a message for some seconds; `content` is a text or an element. */
export function toast(content, kind = "info") {
  const notice = content instanceof Error ? errorNotice(content)
    : element("div", { class: "notice", "data-kind": kind }, content);
  byId("toasts").append(notice);
  setTimeout(() => notice.remove(), TOAST_MS);
}

/** Asks in a dialog and returns whether the person confirmed. */
export function confirmed(content, { confirm = layoutTexts.confirm, danger = false } = {}) {
  const dialog = element("dialog", {},
    element("form", { method: "dialog", class: "stack" }, element("div", {}, content),
      element("div", { class: "row" }, element("button", { value: "yes", class: danger ? "danger" : null }, confirm),
        element("button", { value: "", class: "quiet", autofocus: true }, layoutTexts.cancel))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "yes");
  }));
}

/** Copies a text and says so. */
export async function copy(text) {
  await navigator.clipboard.writeText(text);
  toast(layoutTexts.copied, "ok");
}
