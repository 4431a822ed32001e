// The browser, and what the checks ask of a page in it.
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { until } from "./world.mjs";

const require = createRequire(resolve(process.env.TOOLS, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const pictures = "target/browser";
mkdirSync(pictures, { recursive: true });

let passed = 0;
/* Prints a line a check. */
export async function check(what, work) {
  try {
    await work();
  } catch (error) {
    console.log(`FAILED  ${what}`);
    throw error;
  }
  passed += 1;
  console.log(`ok      ${what}`);
}
export const summary = () => console.log(`${passed} passed, 0 failed`);

export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

/* A page, and all that it complains about or asks others for. `change` alters what it is told of the status. */
export async function open(origin, options, change) {
  const context = await browser.newContext({ locale: "en-GB", ...options });
  const page = await context.newPage();
  const seen = { complaints: [], strangers: [] };
  page.on("console", message => { if (["error", "warning"].includes(message.type())) seen.complaints.push(message.text()); });
  page.on("pageerror", error => seen.complaints.push(String(error)));
  page.on("request", request => {
    const url = new URL(request.url());
    if (url.origin !== origin && url.protocol !== "data:") seen.strangers.push(request.url());
  });
  if (change) {
    await page.route("**/v1/status", async route => {
      const answer = await route.fetch(), status = await answer.json();
      change(status);
      await route.fulfill({ response: answer, json: status });
    });
  }
  await page.goto(`${origin}/`);
  return { page, seen, context };
}

export const sentence = (page, text, patience) => until(`the page says ${JSON.stringify(text)}`, async () => (await page.textContent("#sentence")).includes(text), patience);

export async function barriers(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(node => node.html.slice(0, 120)).join(" | ")}`);
}
