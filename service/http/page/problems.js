/** Shows what went wrong, in the server's own words, with what can be done about it. */

import { element } from "./dom.js";

/** Show a problem in its box; `again`, where given, is offered for what may pass by itself. */
export function showProblem(box, problem, again = null) {
  const parts = [element("h3", {}, problem.title), element("p", {}, problem.detail)];
  if (problem.errors.length > 0) {
    const items = problem.errors.map((fault) =>
      element("li", {}, `Image ${fault.index + 1}: ${fault.detail} `, element("code", {}, fault.code)),
    );
    parts.push(element("ul", {}, ...items));
  }
  if (problem.retryAfterS !== null) parts.push(element("p", {}, `The server asks to wait ${problem.retryAfterS} s.`));
  if (problem.isPassing && again !== null) {
    const button = element("button", { type: "button" }, "Try again");
    button.addEventListener("click", again);
    parts.push(button);
  }
  const facts = [problem.status || null, problem.code, problem.requestId && `request ${problem.requestId}`];
  parts.push(element("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
  box.replaceChildren(...parts);
  box.hidden = false;
}

/** Take the problem away. */
export function clearProblem(box) {
  box.replaceChildren();
  box.hidden = true;
}
