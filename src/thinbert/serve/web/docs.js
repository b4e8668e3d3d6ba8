// The routes of openapi.json as a page. (Swagger's own page loads its scripts from elsewhere.)

const make = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
};

const main = document.querySelector("main");
const api = await fetch("/openapi.json").then((answer) => answer.json()).catch(() => {
  main.textContent = "The description of the routes cannot be read: is the server still there?";
  throw new Error("no openapi.json");
});

const named = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function type(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(type).filter((t) => t !== "null").join(" or ");
  if (schema.type === "array") return `list of ${type(schema.items)}`;
  return schema.type || "any";
}

// An example that the server would take.
function example(schema, depth = 0) {
  const s = named(schema);
  if (!s || depth > 5) return null;
  if (s.example !== undefined) return s.example;
  if (s.default !== undefined && s.default !== null) return s.default;
  if (s.anyOf) return example(s.anyOf[0], depth + 1);
  if (s.type === "object" && s.properties) {
    const wanted = Object.entries(s.properties).filter(([name]) => (s.required || []).includes(name));
    return Object.fromEntries(wanted.map(([name, value]) => [name, word(name) ?? example(value, depth + 1)]));
  }
  if (s.type === "array") return [example(s.items, depth + 1)];
  return { string: "text", integer: 1, number: 0.5, boolean: true }[s.type] ?? {};
}
const word = (name) => ({ question: "Who built it?", context: "Gustave Eiffel built it.", datatype: "BYTES", shape: [1], data: ["text"] })[name];

function fields(schema) {
  const s = named(schema);
  if (!s?.properties) return [];
  const rows = Object.entries(s.properties).map(([name, value]) => {
    const rest = [value.description, value.default !== undefined && value.default !== null ? `default ${JSON.stringify(value.default)}` : ""];
    return make("tr", "", make("td", "", make("code", name + ((s.required || []).includes(name) ? " *" : ""))), make("td", type(value)),
      make("td", rest.filter(Boolean).join("; ")));
  });
  return [make("table", "", ...rows)];
}

const groups = new Map();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const group = route.tags?.[0] ?? "other";
    if (!groups.has(group)) groups.set(group, []);
    const content = route.requestBody?.content ?? {};
    const json = content["application/json"]?.schema;
    const title = make("summary", "", Object.assign(make("span", method.toUpperCase()), { className: "method" }), " ",
      make("code", path), ` ${route.summary ?? ""}`);
    const details = make("details", "", title);
    if (route.description) details.append(make("p", route.description));
    let url = location.origin + path;
    for (const p of route.parameters ?? [])
      if (p.in === "path" && p.schema.examples) url = url.replace(`{${p.name}}`, encodeURIComponent(p.schema.examples[0]));
    if (json) {
      details.append(...fields(json));
      const body = JSON.stringify(example(json));
      details.append(make("pre", `curl ${url} -H 'Content-Type: application/json' \\\n  -d '${body.replaceAll("'", "'\\''")}'`));
    } else if (content["multipart/form-data"]) {
      details.append(make("pre", `curl ${url} -F files=@paper.pdf`));
    } else {
      details.append(make("pre", `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${url}`));
    }
    details.append(make("p", "Answers: " + Object.entries(route.responses ?? {}).map(([code, r]) => `${code} ${r.description}`).join("; ")));
    groups.get(group).push(Object.assign(make("div", "", details), { className: "card" }));
  }
}
document.getElementById("routes").replaceChildren(
  ...[...groups].flatMap(([name, cards]) => [make("h2", name), ...cards]));
