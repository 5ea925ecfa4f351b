// Small ways to build and change elements. Nothing is replaced that did not change, so that the
// page does not flicker and a reader's place, selection and focus stay.

const SVG = "http://www.w3.org/2000/svg";

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** An HTML element with attributes (on...: listeners) and children (texts or elements). */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Give an element a text. */
export function say(element, text) {
  const told = String(text);
  if (element.textContent !== told) element.textContent = told;
}

/** Give an element an attribute; null takes it away. */
export function set(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Set one property of an element's style. */
export function style(element, name, value) {
  if (element.style[name] !== value) element.style[name] = value;
}

/**
 * Make a parent's children those of `items`, in their order, keeping the elements of known keys.
 * `create(item)` gives an element, `update(element, item)` fills it.
 */
export function keyed(parent, items, key, create, update) {
  const known = parent.keyed ?? (parent.keyed = new Map());
  const wanted = new Set(items.map(key));
  for (const [name, element] of known) {
    if (!wanted.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = known.get(name);
    if (element === undefined) {
      element = create(item);
      known.set(name, element);
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
}

/** Terms and their values in a `dl`: pairs of texts, a third text is written small behind. */
export function facts(list, pairs) {
  keyed(
    list,
    pairs,
    ([term]) => term,
    ([term]) => {
      const small = el("small");
      const value = el("span");
      const row = el("div", {}, el("dt", {}, term), el("dd", {}, value, " ", small));
      row.parts = { value, small };
      return row;
    },
    (row, [, value, small = ""]) => {
      say(row.parts.value, value);
      say(row.parts.small, small);
    },
  );
}

/** Show an element, or hide it. */
export function shown(element, is) {
  if (element.hidden === is) element.hidden = !is;
}
