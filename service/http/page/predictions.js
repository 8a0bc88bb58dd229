/** The classes of an image as bars, and where the time went. */

import { byId, element } from "./dom.js";

const STAGES = [
  ["decode", "Decode"],
  ["preprocess", "Resize"],
  ["queue", "Queue"],
  ["inference", "Inference"],
];

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** Show an answer of `/v1/classify` to one image, and say it to those who listen. */
export function showPredictions(answer) {
  const { predictions } = answer.results[0];
  byId("empty").hidden = true;
  byId("predictions").replaceChildren(...predictions.map(bar));
  const [best, ...others] = predictions.map(({ label, score }) => `${label}, ${percent.format(score)}`);
  byId("announcement").textContent = `Most likely ${best}. Then ${others.join("; ")}.`;
  showTimings(answer.timings_ms);
}

/** Show none. */
export function clearPredictions() {
  byId("empty").hidden = false;
  byId("predictions").replaceChildren();
  byId("announcement").textContent = "";
  byId("timings").hidden = true;
}

function bar({ label, score }) {
  const track = element("span", { class: "track", "aria-hidden": "true" }, element("span", { class: "fill" }));
  track.style.setProperty("--share", score);
  const name = element("span", { class: "label" }, label);
  return element("li", {}, name, element("span", { class: "number" }, percent.format(score)), track);
}

function showTimings(timings) {
  const named = STAGES.map(([stage, name]) => ({ stage, name, ms: timings[stage] }));
  const spent = named.reduce((sum, { ms }) => sum + ms, 0);
  // Receiving the body and writing the answer; the stages' clocks may together run past the total's by a rounding.
  named.push({ stage: "rest", name: "Rest", ms: Math.max(0, timings.total - spent) });
  byId("timings").hidden = false;
  byId("total").textContent = milliseconds(timings.total);
  byId("timing-bar").replaceChildren(
    ...named.map(({ stage, ms }) => {
      const part = element("span", { "data-stage": stage });
      part.style.setProperty("--ms", ms);
      return part;
    }),
  );
  byId("timing-list").replaceChildren(
    ...named.map(({ stage, name, ms }) =>
      element("div", { "data-stage": stage }, element("dt", {}, name), element("dd", { class: "number" }, milliseconds(ms))),
    ),
  );
}

function milliseconds(value) {
  return `${value.toFixed(value < 10 ? 2 : 1)} ms`;
}
