// Drives the demo page in headless Chromium through Playwright: the one place that knows the page's elements.
import { existsSync, mkdirSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { CONTROL_URL, PATIENCE_MS } from './common.mjs';

const CANDIDATES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/// A browser with /demo open; `errors` collects what a person would see in the console.
export async function openDemo() {
  const executablePath = CANDIDATES.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error('no Chromium: run `make sdk`, or set CHROMIUM to its path');
  const args = ['--no-sandbox', '--disable-gpu', '--no-proxy-server'];
  const browser = await chromium.launch({ executablePath, headless: true, args });
  const demo = new Demo(browser, await browser.newPage({ viewport: { width: 1100, height: 900 } }));
  await demo.open();
  return demo;
}

class Demo {
  errors = [];

  constructor(browser, page) {
    this.browser = browser;
    this.page = page;
    page.setDefaultTimeout(PATIENCE_MS);
    page.on('console', (message) => { if (message.type() === 'error') this.errors.push(message.text()); });
    page.on('pageerror', (error) => this.errors.push(String(error)));
    page.on('requestfailed', (request) => this.errors.push(`${request.url()}: ${request.failure()?.errorText}`));
  }

  async open() {
    const response = await this.page.goto(`${CONTROL_URL}/demo`);
    if (response.status() !== 200) throw new Error(`/demo answered ${response.status()}`);
  }

  /// Waits until the text of an element passes a check.
  async shows(id, check, what) {
    const end = Date.now() + PATIENCE_MS;
    let text;
    do {
      text = (await this.page.textContent(`#${id}`)).trim();
      if (check(text)) return text;
      await this.page.waitForTimeout(20);
    } while (Date.now() < end);
    throw new Error(`${what}: #${id} shows ${JSON.stringify(text)}; errors: ${this.errors.join('; ')}`);
  }

  async connect(encoding = 'json') {
    await this.page.selectOption('#encoding', encoding);
    await this.page.click('#connect');
    await this.shows('state', (text) => text === 'connected', 'connected');
  }

  async disconnect() {
    await this.page.click('#disconnect');
    await this.shows('state', (text) => text === 'disconnected', 'disconnected');
  }

  async subscribe(channel) {
    await this.page.fill('#channel', channel);
    await this.page.click('#subscribe');
    await this.shows('subscription', (text) => text === 'subscribed', `subscribed to ${channel}`);
  }

  async publish(text) {
    await this.page.fill('#text', text);
    await this.page.click('#publish');
  }

  /// Waits until the list of messages contains a text.
  async sees(text) {
    await this.shows('messages', (shown) => shown.includes(text), `sees ${text}`);
  }

  async screenshot(name) {
    const folder = process.env.SCREENSHOTS ?? '.cache';
    mkdirSync(folder, { recursive: true });
    await this.page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  }

  async close() {
    await this.browser.close();
  }
}
