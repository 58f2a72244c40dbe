// Server-sent events of jobs. EventSource reconnects by itself and resumes after the last event that it received.

import { ENDED } from "./page.js";

/** Follows all jobs: `onStatus(job)`, `onProgress(id, progress)`, `onConnection(isConnected)`. Returns a function that stops. */
export function followAll({ onStatus, onProgress = () => {}, onConnection = () => {} }) {
  const source = new EventSource("/api/events");
  source.addEventListener("open", () => onConnection(true));
  source.addEventListener("error", () => onConnection(false));
  source.addEventListener("status", ({ data }) => onStatus(JSON.parse(data)));
  source.addEventListener("progress", ({ data }) => {
    const { id, progress } = JSON.parse(data);
    onProgress(id, progress);
  });
  return () => source.close();
}

/** Follows one job to its end and returns it. `onToken(piece)` gets the text: a piece with offset 0 starts again. */
export function followJob(id, { onToken = () => {}, onStatus = () => {}, onProgress = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`/api/jobs/${id}/events?last_event_id=0-0`);
    source.addEventListener("token", ({ data }) => onToken(JSON.parse(data)));
    source.addEventListener("progress", ({ data }) => onProgress(JSON.parse(data).progress));
    source.addEventListener("status", ({ data }) => {
      const job = JSON.parse(data);
      onStatus(job);
      if (!ENDED.includes(job.status)) return;
      source.close();
      resolve(job);
    });
    source.addEventListener("error", () => {
      // a connection that is refused, not merely broken: the job is gone or the session has ended
      if (source.readyState === EventSource.CLOSED) reject(new Error(`/api/jobs/${id}/events`));
    });
  });
}
