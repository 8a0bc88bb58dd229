/** The page's flow: which models there are; for each image its classes, its points, and the code to ask the same. */

import { Problem, get, hasKey, post, useKey } from "./api.js";
import { setUpCode, showCode } from "./code.js";
import { byId, element } from "./dom.js";
import { setUpPoints } from "./points.js";
import { clearPredictions, showPredictions } from "./predictions.js";
import { clearProblem, showProblem } from "./problems.js";
import { setUpSources } from "./sources.js";

const CLASSIFY = "v1/classify";
const TOP_K = { top_k: 5 };
const DRAWN_VARIANT = "dat_demo"; // the model that was trained on drawings
const UNSENT = { name: "image.jpg", type: "image/jpeg" };

const results = byId("results");
const problem = byId("problem");
const choice = byId("models");
let model = null;
let named = {}; // what names the model in a request: nothing where there is but the default one
let image = null;
let asking = null;
let saved = null;

const points = setUpPoints({ onUnauthorized: wantKey });
const sources = setUpSources({ onImage: look, onNone: forget });

/** Learn which models are served, and show the chosen one to the image that is there. */
async function meet() {
  try {
    await learn();
  } catch (error) {
    return report(error, meet);
  }
  clearProblem(problem);
  welcomeKey();
  if (image !== null) look(image);
}

/** Learn which models are served, and what the chosen one is. */
async function learn() {
  const listed = await get("v1/models");
  const names = listed.models.filter((version) => version.is_default).map(({ name }) => name);
  const chosen = names.includes(choice.value) ? choice.value : (names[0] ?? listed.default);
  choice.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  choice.value = chosen;
  byId("model-choice").hidden = names.length < 2;
  const described = await get(`v1/models/${encodeURIComponent(chosen)}`);
  if (names.length > 1 && choice.value !== chosen) return; // another was chosen meanwhile
  model = described;
  named = names.length > 1 || chosen !== listed.default ? { model: chosen } : {};
  const size = `${model.input_width} × ${model.input_height} pixels`;
  byId("model").textContent = `${model.name} · version ${model.version} · ${model.num_classes} classes · ${size}`;
  if (model.variant === DRAWN_VARIANT) sources.offerDrawing();
  else sources.withdrawDrawing();
}

/** Classify an image, then show where the model looked. */
async function look(given) {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  image = given;
  describeImage();
  const parameters = { ...TOP_K, ...named };
  showCode(CLASSIFY, parameters, image);
  results.setAttribute("aria-busy", "true");
  try {
    const answer = await post(CLASSIFY, parameters, image, signal);
    clearProblem(problem);
    showPredictions(answer);
    if (model !== null && model.version !== answer.model.version) await learn(); // it was replaced meanwhile
  } catch (error) {
    if (error.name === "AbortError") return; // a later image has taken this one's place
    clearPredictions();
    byId("empty").hidden = true;
    points.hide();
    report(error, () => look(given));
    return;
  } finally {
    if (!signal.aborted) results.setAttribute("aria-busy", "false");
  }
  if (signal.aborted) return;
  if (model?.explain) points.show(model, image, named);
  else points.hide();
}

/** Take everything away that was of an image. */
function forget() {
  asking?.abort();
  image = null;
  results.setAttribute("aria-busy", "false");
  clearProblem(problem);
  clearPredictions();
  points.hide();
  describeImage();
  showCode(CLASSIFY, { ...TOP_K, ...named }, UNSENT);
}

function describeImage() {
  if (saved !== null) URL.revokeObjectURL(saved);
  saved = null;
  const save = byId("save");
  save.hidden = !image?.isMade;
  byId("image-note").textContent = image === null ? "" : [image.name, image.note].filter(Boolean).join(" · ");
  if (!image?.isMade) return;
  saved = URL.createObjectURL(image.blob);
  save.href = saved;
  save.download = image.name;
}

function report(error, again) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) wantKey();
  else showProblem(problem, error, again);
}

/** Ask for an API key; again, where one was given that the server does not take. */
function wantKey() {
  const form = byId("key-form");
  byId("key-error").textContent = hasKey() ? "The server does not take this key." : "";
  useKey(null);
  byId("key-forget").hidden = true;
  form.hidden = false;
  if (image !== null || byId("key-error").textContent) byId("key").focus();
}

function welcomeKey() {
  const form = byId("key-form");
  if (form.contains(document.activeElement)) results.focus();
  form.hidden = true;
  byId("key-forget").hidden = !hasKey();
  showCode(CLASSIFY, { ...TOP_K, ...named }, image ?? UNSENT);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  meet();
});
byId("key-forget").addEventListener("click", () => {
  useKey(null);
  meet();
});

choice.addEventListener("change", meet);

setUpCode();
showCode(CLASSIFY, TOP_K, UNSENT);
meet();
