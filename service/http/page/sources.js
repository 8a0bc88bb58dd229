/**
 * Where images come from: a file that is chosen, dropped or pasted, the camera, or the drawing area.
 *
 * Whatever the source, `onImage` is called with what is to be sent: `{blob, type, name, isMade, note}`. A file goes as
 * it is, even one that is no image: what can be read is for the server to say. `isMade` images exist in this page
 * alone and can be saved.
 */

import { setUpCamera } from "./camera.js";
import { byId } from "./dom.js";
import { setUpDrawing } from "./drawing.js";
import { upright } from "./upright.js";

const PANELS = ["file", "camera", "draw"];

/** Make every source ready. Returns what the page needs of them: `{offerDrawing(), withdrawDrawing()}`. */
export function setUpSources({ onImage, onNone }) {
  let ofDrawing = null;
  let preview = null;

  const camera = setUpCamera((image) => {
    show("file");
    accept(image);
  });
  const drawing = setUpDrawing((image) => {
    ofDrawing = image;
    if (image === null) onNone();
    else onImage(image);
  });

  async function take(file, name) {
    show("file");
    const turned = await upright(file);
    if (turned !== null) {
      const stem = name.replace(/\.[^.]*$/, "");
      accept({ blob: turned, type: turned.type, name: `${stem}-upright.jpg`, isMade: true, note: "Turned upright." });
    } else {
      const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
      accept({ blob: file, type, name, isMade: false, note: "" });
    }
  }

  function accept(image) {
    if (preview !== null) URL.revokeObjectURL(preview);
    preview = URL.createObjectURL(image.blob);
    const shown = byId("preview");
    shown.alt = `The chosen image, ${image.name}`;
    shown.onload = () => (shown.hidden = false);
    shown.onerror = () => (byId("no-preview").hidden = false);
    shown.hidden = true;
    byId("no-preview").hidden = true;
    shown.src = preview;
    byId("drop").classList.add("filled");
    onImage(image);
  }

  function takeFirst(files, fallbackName) {
    const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
    if (file) take(file, file.name || fallbackName);
  }

  /** Show a source's panel, without taking an image from it. */
  function show(name) {
    byId("sources").querySelector(`[value="${name}"]`).checked = true;
    for (const panel of PANELS) byId(`panel-${panel}`).hidden = panel !== name;
    if (name !== "camera") camera.stop();
  }

  byId("sources").addEventListener("change", ({ target }) => {
    show(target.value);
    if (target.value === "draw" && ofDrawing !== null) onImage(ofDrawing);
  });
  for (const input of [byId("file"), byId("capture")]) {
    input.addEventListener("change", () => {
      takeFirst(input.files, "photo.jpg");
      input.value = ""; // so that choosing the same file again is a change
    });
  }
  setUpDrop(takeFirst);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    takeFirst(event.clipboardData.files, "pasted.png");
  });

  return {
    offerDrawing() {
      byId("choice-draw").hidden = false;
      if (!byId("drop").classList.contains("filled")) show("draw");
      drawing.ready();
    },

    /** Offer it no more; a drawing that was taken already stays the image until another is. */
    withdrawDrawing() {
      byId("choice-draw").hidden = true;
      if (!byId("panel-draw").hidden) show("file");
    },
  };
}

function setUpDrop(takeFirst) {
  const drop = byId("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    takeFirst(event.dataTransfer.files, "dropped.png");
  });
  drop.addEventListener("click", ({ target }) => {
    if (target === drop || target === byId("preview")) byId("file").click();
  });
}
