/**
 * Photos the right way up.
 *
 * Cameras often store a photo lying on its side, with a note (EXIF's orientation) of how to turn it. The server reads
 * pixels as they are stored unless it is set to do otherwise, so such a photo would be classified lying. The page turns
 * it before it is sent, and says so.
 */

const ORIENTATION_TAG = 0x0112;
const EXIF = 0x45786966;
const LONGEST_SIDE = 2048; // more than any model sees, and less than any browser's largest canvas
const QUALITY = 0.95;

/** Return an upright JPEG of a JPEG file that says it lies, or null for any other file, or a broken one. */
export async function upright(file) {
  if (orientationOf(new DataView(await file.slice(0, 128 * 1024).arrayBuffer())) <= 1) return null;
  const picture = await createImageBitmap(file).catch(() => null); // broken: what is wrong is for the server to say
  return picture && redrawn(picture);
}

/** Return a JPEG of a picture (a bitmap or a video's frame) of at most LONGEST_SIDE pixels a side. */
export function redrawn(picture) {
  const width = picture.videoWidth ?? picture.width;
  const height = picture.videoHeight ?? picture.height;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}

/** Return the EXIF orientation in the first bytes of a JPEG file, 1 to 8; 0 where there is none. */
export function orientationOf(view) {
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return 0;
  for (let at = 2; at + 10 <= view.byteLength && view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint16(at) === 0xffe1 && view.getUint32(at + 4) === EXIF) return orientationIn(view, at + 10);
    if (view.getUint16(at) === 0xffda) break; // the picture itself begins
  }
  return 0;
}

/** Look for the tag in the first directory of the TIFF structure at `start`. */
function orientationIn(view, start) {
  if (start + 8 > view.byteLength) return 0;
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  if (directory + 2 > view.byteLength) return 0;
  const entries = view.getUint16(directory, little);
  for (let entry = directory + 2; entry < directory + 2 + 12 * entries && entry + 12 <= view.byteLength; entry += 12) {
    if (view.getUint16(entry, little) === ORIENTATION_TAG) return view.getUint16(entry + 8, little);
  }
  return 0;
}
