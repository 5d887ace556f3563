// Looks at the dashboard of a running controller with a real browser, as people do: logs in, visits every page, at desk and phone width,
// light and dark, by pointer and by keyboard. The end-to-end test starts the controller and gives its address and token.
//
//   PLEACH_API=https://127.0.0.1:7444 PLEACH_TOKEN_FILE=… PLEACH_DEVICE=press-1 [PLEACH_SCREENSHOTS=folder] npm test [approve]
//
// With `approve` it only lets a rollout begin that waits for a second person.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

const api = process.env.PLEACH_API;
const token = readFileSync(process.env.PLEACH_TOKEN_FILE, "utf8").trim();
const device = process.env.PLEACH_DEVICE;
const pictures = process.env.PLEACH_SCREENSHOTS;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
if (pictures) mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({
  executablePath: process.env.PLEACH_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const PAGES = ["/", "/classes", "/devices", `/devices/${device}`, "/models", "/jobs", "/rollouts", "/decisions", "/audit"];

/** A page that notes everything a browser complains about, and every address it asks. */
async function open(options) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, baseURL: api, bypassCSP: false, ...options });
  const page = await context.newPage();
  const complaints = [];
  const elsewhere = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("request", (request) => !request.url().startsWith(api) && !request.url().startsWith("data:") && elsewhere.push(request.url()));
  return { page, context, complaints, elsewhere };
}

async function login(page) {
  await page.goto("/");
  await page.getByLabel("API token").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "Fleet" }).waitFor();
}

/** Goes where a link of the page would, without a reload. */
async function visit(page, path) {
  await page.evaluate((to) => {
    history.pushState(null, "", to);
    dispatchEvent(new PopStateEvent("popstate"));
  }, path);
  await page.locator("main h1").waitFor();
  await page.locator("[aria-busy]").first().waitFor({ state: "detached" });
}

async function serious(page, where) {
  // Evaluated by the browser's own debugger, which the page's content policy does not bind.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "best-practice"] }));
  const found = violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.nodes.map((n) => n.html).slice(0, 2)}`);
  assert.deepEqual(found, [], `accessibility of ${where}`);
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
}

async function refusesAStranger() {
  const { page, context } = await open({});
  await page.goto("/");
  await serious(page, "the login");
  await page.getByLabel("API token").fill("pla1.wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByRole("alert").waitFor();
  assert.match(await page.getByRole("alert").innerText(), /not known|expired/);
  await context.close();
}

async function showsEveryPage(name, options) {
  const { page, context, complaints, elsewhere } = await open(options);
  await login(page);
  for (const path of PAGES) {
    await visit(page, path);
    assert.equal(await page.getByRole("alert").count(), 0, `${path}: ${await page.locator("main").innerText()}`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${path} is ${wide} pixels wider than the ${name} screen`);
    await serious(page, `${path} (${name})`);
    await picture(page, `${name}-${path === "/" ? "fleet" : path.slice(1).replaceAll("/", "-")}`);
  }
  assert.deepEqual(complaints, []);
  assert.deepEqual(elsewhere, [], "the page asks nobody but its controller");
  await context.close();
}

async function leadsFromTheFleetToADevice() {
  const { page, context } = await open({});
  await login(page);
  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name: "Devices" }).click();
  await page.getByRole("searchbox").fill("no such device");
  await page.getByText(/^0 of/).waitFor();
  await page.getByRole("searchbox").fill(device);
  await page.getByRole("link", { name: device }).click();
  await page.getByRole("heading", { level: 1, name: device }).waitFor();
  await page.getByText("Because").waitFor();
  await page.locator(".chart canvas").waitFor();
  await page.getByRole("main").getByRole("link").first().click();
  await page.getByText("Objective and evidence").waitFor();
  await page.locator(".chart canvas").first().waitFor();
  // The address of a page opens that page, after a new login too.
  await page.reload();
  await page.getByText("Objective and evidence").waitFor();
  await page.getByRole("link", { name: "Models" }).click();
  await page.getByRole("main").getByRole("link").first().click();
  await page.getByText("Against the full model").waitFor();
  await page.getByText("What each group of channels kept").waitFor();
  await picture(page, "model");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByLabel("API token").waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "a token stays behind after logging out");
  await context.close();
}

/** What somebody else does shows up without a reload: here a device is cut off, by the page itself in another window. */
async function isLive() {
  const watcher = await open({});
  await login(watcher.page);
  await watcher.page.getByText("live", { exact: true }).waitFor();
  const connected = watcher.page.locator(".tile", { hasText: "Connected" });
  const before = await connected.innerText();
  const actor = await open({});
  await login(actor.page);
  await visit(actor.page, `/devices/${device}`);
  actor.page.on("dialog", (dialog) => dialog.accept());
  await actor.page.getByRole("button", { name: "Revoke" }).click();
  await actor.page.locator("h1 .state", { hasText: "revoked" }).waitFor();
  await watcher.page.waitForFunction((was) => [...document.querySelectorAll(".tile")].some((t) => t.innerText.startsWith("Connected") && t.innerText !== was), before);
  await watcher.context.close();
  await actor.context.close();
}

async function approvesARollout() {
  const { page, context, complaints } = await open({});
  await login(page);
  await visit(page, "/rollouts");
  await page.getByText("wave 1 of 2").waitFor();
  await serious(page, "a rollout that waits");
  await picture(page, "rollout-waits");
  page.on("dialog", (dialog) => dialog.accept());
  await page.getByRole("button", { name: "approve" }).click();
  await page.locator(".card .state", { hasText: "waiting for approval" }).waitFor({ state: "detached" });
  assert.deepEqual(complaints, []);
  await context.close();
}

try {
  const checks = process.argv[2] === "approve" ? [approvesARollout] : [
    refusesAStranger,
    () => showsEveryPage("desk", { viewport: { width: 1280, height: 800 }, colorScheme: "light" }),
    () => showsEveryPage("phone", { viewport: { width: 390, height: 800 }, colorScheme: "dark", hasTouch: true }),
    leadsFromTheFleetToADevice,
    isLive,
  ];
  for (const check of checks) await check();
  console.log(`${checks.length} checks passed`);
} finally {
  await browser.close();
}
