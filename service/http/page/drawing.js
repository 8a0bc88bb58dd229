/** A drawing area for mouse, touch and pen, and samples for the keyboard. Dark ink on white paper, whatever the theme. */

import { DIGITS } from "./digits.js";
import { byId, element } from "./dom.js";

const PEN = 0.075; // of the area's side
const INK = "#15171a";
const PAPER = "#ffffff";

/** Call `onImage` with the drawing after each stroke, and with null when nothing is left of it. */
export function setUpDrawing(onImage) {
  const canvas = byId("canvas");
  const pen = canvas.getContext("2d");
  let strokes = [];
  let current = null; // the stroke being drawn, and the pointer that draws it

  function redraw() {
    pen.fillStyle = PAPER;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = INK;
    pen.lineWidth = PEN * canvas.width;
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of strokes) {
      pen.beginPath();
      stroke.forEach(([x, y]) => pen.lineTo(x * canvas.width, y * canvas.height));
      if (stroke.length === 1) pen.lineTo(stroke[0][0] * canvas.width, stroke[0][1] * canvas.height); // a dot
      pen.stroke();
    }
    byId("draw-hint").hidden = strokes.length > 0;
    byId("draw-undo").disabled = byId("draw-clear").disabled = strokes.length === 0;
  }

  async function changed() {
    redraw();
    if (strokes.length === 0) return onImage(null);
    const drawn = strokes;
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (drawn === strokes) onImage({ blob, type: blob.type, name: "digit.png", isMade: true, note: "" });
  }

  function place({ clientX, clientY }) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (current !== null || event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    current = { pointer: event.pointerId, points: [place(event)] };
    strokes = [...strokes, current.points];
    redraw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== current?.pointer) return;
    const passed = event.getCoalescedEvents();
    current.points.push(...(passed.length > 0 ? passed : [event]).map(place));
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId !== current?.pointer) return;
      current = null;
      changed();
    });
  }

  byId("draw-undo").addEventListener("click", () => {
    strokes = strokes.slice(0, -1);
    changed();
  });
  byId("draw-clear").addEventListener("click", () => {
    strokes = [];
    changed();
  });
  byId("sample").append(...DIGITS.map((_, digit) => element("option", { value: digit }, digit)));
  byId("draw-sample").addEventListener("click", () => {
    strokes = DIGITS[byId("sample").value];
    changed();
  });

  return { ready: redraw };
}
