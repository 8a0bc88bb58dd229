/**
 * The points that the model sampled, over the image: larger where they weigh more, a colour a group of heads.
 *
 * One answer of `/v1/explain` holds every layer, so that the slider asks for nothing. A place that is chosen, by tap or
 * by the keyboard's cursor, asks anew for the attention from there. What is on show is always one answer's; a later
 * question abandons the one before.
 */

import { Problem, post } from "./api.js";
import { byId, element, shape } from "./dom.js";
import { frameOf } from "./frame.js";
import { clearProblem, showProblem } from "./problems.js";

const PLAY_STEP_MS = 900;
const LARGEST_RADIUS = 0.024; // of the image's mean side
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LONG_STEP = 4;

/** Make the section ready; returns `{show(model, image, named), hide()}`; `named` are the parameters that name the model. `onUnauthorized` is called on a 401. */
export function setUpPoints({ onUnauthorized }) {
  const overlay = byId("overlay");
  const slider = byId("layer");
  const hiddenGroups = new Set();
  let subject = null; // {model, image, named}
  let result = null; // the image's result, with its layers
  let query = null; // the chosen place in pixels of the image, or null for the average
  let cursor = null; // where the keyboard's cursor is
  let asking = null;
  let playing = null;
  let address = null;

  async function ask(place) {
    asking?.abort();
    asking = new AbortController();
    const fromPlace = place === null ? {} : { query: place.map((value) => +value.toFixed(2)).join(",") };
    const parameters = { ...subject.named, ...fromPlace };
    try {
      const answer = await post("v1/explain", parameters, subject.image, asking.signal);
      result = answer.results[0];
      query = place;
      clearProblem(byId("points-problem"));
      byId("points").hidden = false;
      slider.max = result.layers.length - 1;
      render();
      byId("points-announcement").textContent = byId("points-say").textContent;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) onUnauthorized();
      byId("points").hidden = false;
      showProblem(byId("points-problem"), error, () => ask(place));
    }
  }

  function render() {
    if (result === null) return;
    const layer = result.layers[slider.value];
    const frame = frameOf(subject.model, result);
    const name = `Stage ${layer.stage}, block ${layer.block}`;
    byId("layer-name").textContent = `${name} (${Number(slider.value) + 1} of ${result.layers.length})`;
    slider.setAttribute("aria-valuetext", byId("layer-name").textContent);
    byId("layer-back").disabled = slider.value === slider.min;
    byId("layer-next").disabled = slider.value === slider.max;
    byId("query-clear").hidden = query === null;
    byId("points-say").textContent = describe(layer, name);
    byId("plate").style.setProperty("--ratio", result.width / result.height);
    overlay.setAttribute("viewBox", `0 0 ${result.width} ${result.height}`);
    overlay.replaceChildren(...frame.outline(), ...pointsOf(layer), ...frame.cell(layer), ...cross());
    showGroups(layer.groups.length);
  }

  function describe(layer, name) {
    const count = `${layer.groups[0].points.length} points in each of ${layer.groups.length} groups`;
    const from = layer.query === null
      ? "the average over all places"
      : `from row ${layer.query.row + 1}, column ${layer.query.column + 1} of ${layer.query_rows} × ${layer.query_columns}`;
    return `${name}: ${count}, ${from}.`;
  }

  function pointsOf(layer) {
    const heaviest = Math.max(...layer.groups.flatMap(({ weights }) => weights));
    const largest = LARGEST_RADIUS * Math.sqrt(result.width * result.height);
    const circles = layer.groups.flatMap(({ points, weights }, group) =>
      points.map(([x, y], index) => ({ x, y, weight: weights[index], group })),
    );
    circles.sort((a, b) => b.weight - a.weight); // small ones on top
    return circles
      .filter(({ group }) => !hiddenGroups.has(group))
      .map(({ x, y, weight, group }) => {
        const r = Math.max(largest * Math.sqrt(weight / heaviest), largest / 8);
        return shape("circle", { class: `point group-${group % 8}`, cx: x, cy: y, r });
      });
  }

  function cross() {
    if (cursor === null) return []; // a place that was chosen shows as its cell
    const [x, y] = cursor;
    const arm = 1.6 * LARGEST_RADIUS * Math.sqrt(result.width * result.height);
    const path = `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`;
    return [shape("path", { class: "cross-halo", d: path }), shape("path", { class: "cross", d: path })];
  }

  function showGroups(count) {
    const box = byId("groups");
    if (box.querySelectorAll("input").length === count) return;
    hiddenGroups.clear();
    for (const old of box.querySelectorAll("label")) old.remove();
    for (let group = 0; group < count; group += 1) {
      const input = element("input", { type: "checkbox", checked: "" });
      input.addEventListener("change", () => {
        if (input.checked) hiddenGroups.delete(group);
        else hiddenGroups.add(group);
        render();
      });
      box.append(element("label", { class: `group-${group % 8}` }, input, element("span", { class: "swatch" }), `${group + 1}`));
    }
  }

  function choose(place) {
    const frame = frameOf(subject.model, result);
    cursor = null;
    if (!frame.holds(place)) {
      byId("points-announcement").textContent = byId("points-say").textContent =
        "The model did not see that place: it sees what is inside the dashed frame.";
      return;
    }
    ask(place);
  }

  function move([across, down], steps) {
    const frame = frameOf(subject.model, result);
    cursor = frame.moved(cursor ?? query, result.layers[slider.value], across * steps, down * steps);
    render();
    const { row, column } = frame.cellAt(cursor, result.layers[slider.value]);
    byId("points-announcement").textContent = `Row ${row + 1}, column ${column + 1}`;
  }

  function step(by) {
    slider.value = Number(slider.value) + by;
    render();
  }

  function play(isOn) {
    clearInterval(playing);
    playing = isOn ? setInterval(advance, PLAY_STEP_MS) : null;
    byId("layer-play").setAttribute("aria-pressed", isOn);
    byId("layer-play").textContent = isOn ? "Pause" : "Play";
  }

  function advance() {
    if (result === null) return;
    slider.value = (Number(slider.value) + 1) % result.layers.length;
    render();
  }

  overlay.addEventListener("click", (event) => {
    if (result === null) return;
    const { left, top, width, height } = overlay.getBoundingClientRect();
    choose([((event.clientX - left) / width) * result.width, ((event.clientY - top) / height) * result.height]);
  });
  overlay.addEventListener("keydown", (event) => {
    if (result === null || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in MOVES) move(MOVES[event.key], event.shiftKey ? LONG_STEP : 1);
    else if ((event.key === "Enter" || event.key === " ") && cursor !== null) choose(cursor);
    else if (event.key === "Escape") average();
    else return;
    event.preventDefault();
  });

  function average() {
    cursor = null;
    if (query === null) render();
    else ask(null);
  }

  byId("query-clear").addEventListener("click", () => {
    overlay.focus({ preventScroll: true });
    average();
  });
  slider.addEventListener("input", () => {
    play(false);
    render();
  });
  byId("layer-back").addEventListener("click", () => step(-1));
  byId("layer-next").addEventListener("click", () => step(1));
  byId("layer-play").addEventListener("click", () => play(playing === null));

  /** Take away what was of one image. */
  function clear() {
    asking?.abort();
    result = query = cursor = null;
    overlay.replaceChildren();
    byId("points-say").textContent = "";
    clearProblem(byId("points-problem"));
  }

  function hide() {
    clear();
    play(false);
    byId("points").hidden = true;
  }

  return {
    hide,
    async show(model, image, named) {
      clear();
      subject = { model, image, named };
      if (address !== null) URL.revokeObjectURL(address);
      address = URL.createObjectURL(image.blob);
      byId("plate-image").src = address;
      await ask(null);
    },
  };
}
