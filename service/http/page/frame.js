/**
 * What part of an image the model saw, and which place of it is which cell of a layer's map of queries.
 *
 * The service resizes the whole image to `resize_width` x `resize_height` and cuts the centre out. All places here are
 * in pixels of the image as it was sent.
 */

import { shape } from "./dom.js";

/** Return the frame of an image of some `width` and `height` as `model` (an answer of `/v1/models/{name}`) sees it. */
export function frameOf(model, { width, height }) {
  const left = (Math.round((model.resize_width - model.input_width) / 2) / model.resize_width) * width;
  const top = (Math.round((model.resize_height - model.input_height) / 2) / model.resize_height) * height;
  const across = (model.input_width / model.resize_width) * width;
  const down = (model.input_height / model.resize_height) * height;

  const holds = ([x, y]) => x >= left && x < left + across && y >= top && y < top + down;

  /** The cell of `layer` that holds a place. */
  const cellAt = ([x, y], { query_rows: rows, query_columns: columns }) => ({
    row: Math.floor(((y - top) / down) * rows),
    column: Math.floor(((x - left) / across) * columns),
  });

  /** The middle of a cell. */
  const middle = ({ row, column }, { query_rows: rows, query_columns: columns }) => [
    left + ((column + 0.5) * across) / columns,
    top + ((row + 0.5) * down) / rows,
  ];

  return {
    holds,
    cellAt,

    /** The middle of the cell so many columns and rows from a place, or the image's middle from none. */
    moved(place, layer, columns, rows) {
      const { query_rows: most_rows, query_columns: most_columns } = layer;
      if (place === null) return middle({ row: most_rows >> 1, column: most_columns >> 1 }, layer);
      const cell = cellAt(place, layer);
      return middle(
        {
          row: Math.min(Math.max(cell.row + rows, 0), most_rows - 1),
          column: Math.min(Math.max(cell.column + columns, 0), most_columns - 1),
        },
        layer,
      );
    },

    /** The frame drawn, where the model did not see all of the image. */
    outline() {
      if (across >= width && down >= height) return [];
      const whole = `M0 0H${width}V${height}H0Z`;
      const seen = `M${left} ${top}h${across}v${down}h${-across}Z`;
      return [shape("path", { class: "unseen", d: whole + seen }), shape("path", { class: "frame", d: seen })];
    },

    /** The cell that a layer's attention is from, drawn, where it is from one. */
    cell({ query, query_rows: rows, query_columns: columns }) {
      if (query === null) return [];
      const place = { x: left + (query.column * across) / columns, y: top + (query.row * down) / rows };
      const attributes = { ...place, width: across / columns, height: down / rows };
      return [
        shape("rect", { class: "cell-halo", ...attributes }),
        shape("rect", { class: "cell", ...attributes }),
      ];
    },
  };
}
