// The parts of every page: theme, language, readiness of the service, times, htmx requests.

import { byId, layoutTexts, localizeTimes } from "./page.js";
import { translation } from "./sentences.js";

const REFRESH_MS = 15000;
const YEAR_SECONDS = 365 * 86400;

const remember = (name, value) => {
  document.cookie = `${name}=${value}; path=/; max-age=${YEAR_SECONDS}; SameSite=Lax`;
};

byId("theme").addEventListener("change", ({ target }) => {
  document.documentElement.dataset.theme = target.value;
  remember("theme", target.value);
});

byId("language").addEventListener("change", ({ target }) => {
  remember("language", target.value);
  location.reload();
});

async function refreshReadiness() {
  const light = byId("readiness");
  const show = (state, text) => {
    light.dataset.state = state;
    light.title = text;
    light.firstElementChild.textContent = text;
  };
  try {
    const { status, checks, warnings } = await (await fetch("/readyz")).json();
    const wrong = Object.entries(checks).filter(([, outcome]) => outcome !== "ok");
    const problems = wrong.map(async ([part, outcome]) => `${part}: ${(await translation(outcome)).text}`);
    const cautions = warnings.map(async (warning) => (await translation(warning)).text);
    if (status === "ok" && !warnings.length) show("ok", layoutTexts.ready);
    else show(status === "ok" ? "warning" : status, [layoutTexts.notReady, ...await Promise.all([...problems, ...cautions])].join(" "));
  } catch {
    show("unavailable", layoutTexts.noAnswer);
  }
}

localizeTimes();
document.addEventListener("htmx:after:swap", () => localizeTimes());
refreshReadiness();
setInterval(refreshReadiness, REFRESH_MS);
