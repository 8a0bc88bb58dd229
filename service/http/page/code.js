/**
 * The request that the page makes, as one would write it: with curl, in Python and in TypeScript.
 *
 * The pieces run as they are, from the folder where the image lies. An API key is never written into them: they take
 * it from the environment variable API_KEY.
 */

import { address, hasKey } from "./api.js";
import { byId, element } from "./dom.js";

const LANGUAGES = [
  { id: "curl", name: "curl", write: curl },
  { id: "python", name: "Python", write: python },
  { id: "typescript", name: "TypeScript", write: typescript },
];

/** Make the tabs and their panels; the first is shown. */
export function setUpCode() {
  const tabs = byId("code-tabs");
  for (const { id, name } of LANGUAGES) {
    tabs.append(element("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}` }, name));
    const copy = element("button", { type: "button", class: "copy" }, "Copy");
    const code = element("code");
    const panel = element(
      "div",
      { role: "tabpanel", id: `panel-${id}`, class: "code", "aria-labelledby": `tab-${id}` },
      element("pre", { tabindex: "0", role: "region", "aria-label": `Request in ${name}` }, code),
      copy,
    );
    copy.addEventListener("click", () => copyText(code, copy));
    byId("code-panels").append(panel);
  }
  tabs.addEventListener("click", ({ target }) => target.role === "tab" && select(target));
  tabs.addEventListener("keydown", (event) => {
    const all = [...tabs.children];
    const at = all.indexOf(event.target);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const tab = all.at(next % all.length);
    select(tab);
    tab.focus();
  });
  select(tabs.firstElementChild);
}

function select(chosen) {
  for (const tab of byId("code-tabs").children) {
    const isChosen = tab === chosen;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
}

/** Write the request for `image` (its `name` and `type`) with the query parameters that the page sends. */
export function showCode(path, parameters, image) {
  const request = { path, parameters, file: image.name, type: image.type };
  for (const { id, write } of LANGUAGES) byId(`panel-${id}`).querySelector("code").textContent = write(request);
  byId("code-note").textContent = hasKey() ? "The pieces take the API key from the environment variable API_KEY." : "";
}

function curl({ path, parameters, file, type }) {
  const key = hasKey() ? ['  -H "Authorization: Bearer $API_KEY" \\'] : [];
  return [
    "curl --fail-with-body \\",
    `  -H ${shellQuoted(`Content-Type: ${type}`)} \\`,
    ...key,
    `  --data-binary ${shellQuoted(`@${file}`)} \\`,
    `  ${shellQuoted(address(path, parameters))}`,
  ].join("\n");
}

function python({ path, parameters, file, type }) {
  const key = hasKey() ? ', "Authorization": f"Bearer {os.environ[\'API_KEY\']}"' : "";
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "import httpx",
    "",
    `with open(${quoted(file)}, "rb") as image:`,
    "    response = httpx.post(",
    `        ${quoted(address(path))},`,
    `        params=${quoted(parameters).replaceAll('":', '": ').replaceAll(',"', ', "')},`,
    `        headers={"Content-Type": ${quoted(type)}${key}},`,
    "        content=image.read(),",
    "    )",
    "response.raise_for_status()",
    'for prediction in response.json()["results"][0]["predictions"]:',
    "    print(f\"{prediction['score']:.4f}  {prediction['label']}\")",
  ].join("\n");
}

function typescript({ path, parameters, file, type }) {
  const key = hasKey() ? ", Authorization: `Bearer ${process.env.API_KEY}`" : "";
  return [
    'import { readFile } from "node:fs/promises";',
    "",
    `const response = await fetch(${quoted(address(path, parameters))}, {`,
    '  method: "POST",',
    `  headers: { "Content-Type": ${quoted(type)}${key} },`,
    `  body: await readFile(${quoted(file)}),`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    "const { results } = await response.json();",
    "for (const { label, score } of results[0].predictions) {",
    "  console.log(`${score.toFixed(4)}  ${label}`);",
    "}",
  ].join("\n");
}

/** A string as JSON, which is a literal of Python and of TypeScript too. */
function quoted(value) {
  return JSON.stringify(value);
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function copyText(code, button) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(code.textContent);
  } else {
    // Browsers give the clipboard only to pages that came by HTTPS or from this machine; the old way is left.
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  byId("copied").textContent = "Copied to the clipboard.";
  button.addEventListener("blur", () => (button.textContent = "Copy"), { once: true });
}
