/** The digits as a pen would draw them, in fractions of the drawing area: samples for those who have no pen. */

/** Points on an ellipse; degrees clockwise from the right. */
function arc(x, y, radiusX, radiusY, from, to) {
  return Array.from({ length: 25 }, (_, step) => {
    const angle = ((from + ((to - from) * step) / 24) * Math.PI) / 180;
    return [x + radiusX * Math.cos(angle), y + radiusY * Math.sin(angle)];
  });
}

/** Strokes of each digit, each a list of points [x, y] between 0 and 1. */
export const DIGITS = [
  [arc(0.5, 0.5, 0.22, 0.34, -90, 270)],
  [[[0.38, 0.28], [0.53, 0.16], [0.53, 0.84]]],
  [[...arc(0.5, 0.33, 0.2, 0.17, -170, 40), [0.31, 0.82], [0.73, 0.82]]],
  [[...arc(0.47, 0.33, 0.2, 0.17, -150, 90), ...arc(0.47, 0.67, 0.23, 0.17, -90, 150)]],
  [[[0.6, 0.84], [0.6, 0.16], [0.28, 0.6], [0.76, 0.6]]],
  [[[0.7, 0.16], [0.36, 0.16], [0.34, 0.47], ...arc(0.48, 0.63, 0.22, 0.2, -120, 140)]],
  [[[0.62, 0.16], ...arc(0.5, 0.62, 0.22, 0.22, -150, -180), ...arc(0.5, 0.64, 0.2, 0.2, 180, -180)]],
  [[[0.28, 0.18], [0.72, 0.18], [0.44, 0.84]]],
  [arc(0.5, 0.33, 0.17, 0.16, 90, 450), arc(0.5, 0.66, 0.21, 0.17, -90, 270)],
  [arc(0.5, 0.34, 0.19, 0.19, 0, 360), [[0.69, 0.34], [0.66, 0.6], [0.58, 0.84]]],
];
