// Uploads by tus 1.0: created, sent in pieces, continued after a broken connection or a reload of the page.

import { ApiError, csrfToken, request } from "./page.js";

const PIECE_BYTES = 16 * 2 ** 20;
const RETRY_SECONDS = [1, 2, 4, 8, 15, 30];
const MEMORY = "graftwerk:uploads";
const TUS = { "Tus-Resumable": "1.0.0" };

// ---- memory: addresses of unfinished uploads, by what identifies a file ----

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(MEMORY)) ?? {};
  } catch {
    return {}; // no memory, or a damaged one: uploads begin again
  }
}
const remember = (change) => {
  const found = remembered();
  change(found);
  try {
    localStorage.setItem(MEMORY, JSON.stringify(found));
  } catch { /* full, or switched off: only a reload forgets the upload */ }
};

export const fingerprint = (file, path) => [path, file.size, file.lastModified].join("|");
export const forget = (print) => remember((found) => { delete found[print]; });

/** Returns the uploads that were begun and neither finished nor imported: `print`, `url`, `path`, `received`, `size`. */
export async function unfinished() {
  const found = [];
  for (const [print, { url, path }] of Object.entries(remembered())) {
    try {
      const { received_bytes: received, size_bytes: size } = await (await request(url)).json();
      found.push({ print, url, path, received, size });
    } catch (error) {
      if (error instanceof ApiError) forget(print); // expired, imported or removed
    }
  }
  return found;
}

/** Removes an upload from the service. */
export async function discard({ print, url }) {
  forget(print);
  await request(url, { method: "DELETE", headers: TUS });
}

// ---- one upload ----

const base64 = (text) => btoa(String.fromCodePoint(...new TextEncoder().encode(text)));

/** Sends a piece and returns the new offset. `fetch` does not report the progress of a body, so this is an XMLHttpRequest. */
function patch(url, offset, piece, { signal, onSent }) {
  return new Promise((resolve, reject) => {
    const sent = new XMLHttpRequest();
    sent.open("PATCH", url);
    const headers = { ...TUS, "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream" };
    if (csrfToken()) headers["X-CSRF-Token"] = csrfToken();
    for (const [name, value] of Object.entries(headers)) sent.setRequestHeader(name, value);
    sent.upload.onprogress = ({ loaded }) => onSent(offset + loaded);
    sent.onload = () => {
      if (sent.status === 204) return resolve(Number(sent.getResponseHeader("Upload-Offset")));
      let problem = {};
      try {
        problem = JSON.parse(sent.responseText);
      } catch { /* a proxy's page */ }
      return reject(new ApiError(sent.status, problem, url));
    };
    sent.onerror = sent.ontimeout = () => reject(new TypeError("the connection broke"));
    sent.onabort = () => reject(new DOMException("canceled", "AbortError"));
    signal.addEventListener("abort", () => sent.abort(), { once: true });
    sent.send(piece);
  });
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("canceled", "AbortError")); }, { once: true });
});

/** Errors after which the same request may succeed: a broken connection, a proxy, a lock of the earlier request. */
const mayPass = (error) => error instanceof TypeError || (error instanceof ApiError && (error.status >= 502 || [409, 423, 429].includes(error.status)));

export class Upload {
  /** `path`: the file's path in the model. `onSent(bytes)`, `onRetry(seconds)` report. */
  constructor(file, path, { onSent = () => {}, onRetry = () => {} } = {}) {
    Object.assign(this, { file, path, onSent, onRetry, url: null });
    this.print = fingerprint(file, path);
    this.abort = new AbortController();
  }

  get id() {
    return this.url.split("/").pop();
  }

  /** Sends what is missing, however long that takes; throws for a refusal and after `cancel`. */
  async send() {
    const { signal } = this.abort;
    let failures = 0;
    let offset = null;
    for (;;) {
      try {
        offset ??= await this.#offset();
        this.onSent(offset);
        if (offset === this.file.size) return;
        const piece = this.file.slice(offset, offset + PIECE_BYTES);
        offset = await patch(this.url, offset, piece, { signal, onSent: this.onSent });
        failures = 0;
      } catch (error) {
        if (signal.aborted || !mayPass(error)) throw error;
        const seconds = RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)];
        failures += 1;
        this.onRetry(seconds);
        await pause(seconds, signal);
        offset = null; // the service knows how much has arrived
      }
    }
  }

  /** Stops and removes the upload. */
  async cancel() {
    this.abort.abort();
    forget(this.print);
    if (this.url) await request(this.url, { method: "DELETE", headers: TUS }).catch(() => {});
  }

  async #offset() {
    const { signal } = this.abort;
    this.url ??= remembered()[this.print]?.url ?? null;
    if (this.url) {
      try {
        const response = await request(this.url, { method: "HEAD", headers: TUS, signal });
        return Number(response.headers.get("Upload-Offset"));
      } catch (error) {
        if (!(error instanceof ApiError) || ![404, 410].includes(error.status)) throw error;
      }
    }
    const headers = { ...TUS, "Upload-Length": this.file.size, "Upload-Metadata": `filename ${base64(this.path)}` };
    const response = await request("/api/uploads", { method: "POST", headers, signal });
    this.url = response.headers.get("Location");
    remember((found) => { found[this.print] = { url: this.url, path: this.path }; });
    return 0;
  }
}
