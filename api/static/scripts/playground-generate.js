// One generate or compare job of the page: submitted, followed, canceled.

import { followJob } from "./events.js";
import { request } from "./page.js";

/** Submits a request and follows its job: `run.job` ends with the job; `run.cancel()` stops it. */
export class Run {
  #canceled = false;
  #id = null;

  /** `onSubmitted(job)` gets the accepted job, `onToken(piece)` its text. Throws ApiError if it is refused. */
  async start(body, { onSubmitted = () => {}, ...handlers } = {}) {
    const response = await request("/api/jobs", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, metadata: { origin: "page" } }),
    });
    const submitted = await response.json();
    this.#id = submitted.id;
    onSubmitted(submitted);
    if (this.#canceled) this.cancel();
    return followJob(submitted.id, handlers);
  }

  cancel() {
    this.#canceled = true;
    // a job that has just ended refuses the cancellation and is shown as ended
    if (this.#id) request(`/api/jobs/${this.#id}/cancel`, { method: "POST" }).catch(() => {});
  }
}
