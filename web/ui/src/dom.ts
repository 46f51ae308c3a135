// Small helpers around the document.

/** The element with this id; the page has it, or the build is broken. */
export function byId<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`page has no #${id}`);
  return element as T;
}

export function create<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

const paths = {
  play: "M8 5v14l11-7z",
  pause: "M7 5h4v14H7zM14 5h4v14h-4z",
  loud: "M4 9v6h4l5 5V4L8 9zM16 8.2a5 5 0 0 1 0 7.6M18.5 5.5a9 9 0 0 1 0 13",
  silent: "M4 9v6h4l5 5V4L8 9zM17 9l5 6M22 9l-5 6",
  full: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  small: "M9 4v5H4M20 9h-5V4M15 20v-5h5M4 15h5v5",
};

export function setIcon(button: HTMLElement, name: keyof typeof paths): void {
  if (button.dataset["icon"] === name) return;
  button.dataset["icon"] = name;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", paths[name]);
  if (name === "full" || name === "small") path.setAttribute("class", "line");
  if (name === "loud" || name === "silent") path.setAttribute("class", "both");
  svg.append(path);
  button.replaceChildren(svg);
}
