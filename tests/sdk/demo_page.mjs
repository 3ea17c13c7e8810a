// Drives the demo page in headless Chromium through Playwright: the one place that knows the page's elements.
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { CONTROL_URL, PATIENCE_MS } from './common.mjs';

const CANDIDATES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/// Opens /demo; `errors` collects what a person would see in the console.
export async function openDemo() {
  const executablePath = CANDIDATES.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error('no Chromium: run `make sdk`, or set CHROMIUM to its path');
  const browser = await chromium.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu', '--no-proxy-server'] });
  const page = await browser.newPage({ viewport: { width: 1100, height: 800 } });
  page.setDefaultTimeout(PATIENCE_MS);
  const errors = [];
  page.on('console', (message) => { if (message.type() === 'error') errors.push(message.text()); });
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('requestfailed', (request) => errors.push(`${request.url()}: ${request.failure()?.errorText}`));
  const response = await page.goto(`${CONTROL_URL}/demo`);
  if (response.status() !== 200) throw new Error(`/demo answered ${response.status()}`);
  return { browser, page, errors };
}
