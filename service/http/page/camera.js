/**
 * The camera: its live picture where the browser gives it to pages, else the device's own camera app.
 *
 * Browsers give a page the camera only where it came by HTTPS or from the same machine. The camera is let go of as soon
 * as the photo is taken, another source is chosen, or the page is out of sight.
 */

import { byId } from "./dom.js";
import { redrawn } from "./upright.js";

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the camera.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

/** Offer the camera if there is one, and call `onImage` with each photo. Returns `{stop()}`. */
export function setUpCamera(onImage) {
  const video = byId("video");
  const [start, take, stop] = ["start", "take", "stop"].map((name) => byId(`camera-${name}`));
  let stream = null;

  async function open() {
    byId("camera-error").textContent = "";
    start.disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
      video.srcObject = stream;
      await video.play();
      show(true);
      take.focus();
    } catch (error) {
      close();
      byId("camera-error").textContent = REASONS[error.name] ?? `The camera did not start: ${error.message}`;
    } finally {
      start.disabled = false;
    }
  }

  function close() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    video.srcObject = null;
    show(false);
  }

  function show(isOpen) {
    start.hidden = isOpen || !navigator.mediaDevices;
    take.hidden = !isOpen;
    stop.hidden = !isOpen;
  }

  start.addEventListener("click", open);
  stop.addEventListener("click", () => {
    close();
    start.focus();
  });
  take.addEventListener("click", async () => {
    const blob = await redrawn(video);
    close();
    onImage({ blob, type: blob.type, name: "photo.jpg", isMade: true, note: "" });
    byId("file").focus();
  });
  document.addEventListener("visibilitychange", () => document.hidden && close());

  offer(() => show(stream !== null));
  return { stop: close };
}

async function offer(show) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const isLive = devices.some(({ kind }) => kind === "videoinput");
  const hasApp = !isLive && matchMedia("(any-pointer: coarse)").matches;
  byId("choice-camera").hidden = !isLive && !hasApp;
  byId("camera-app").hidden = !hasApp;
  byId("video").parentElement.hidden = !isLive;
  show();
}
