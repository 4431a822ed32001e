// Whether the document on standard input is valid AsyncAPI; prints each error.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { Parser } = createRequire(`${process.env.ASYNCAPI}/`)('@asyncapi/parser');
const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'));
const errors = diagnostics.filter(({ severity }) => severity === 0);
for (const { path, message } of errors) console.log(`${path.join('.')}: ${message}`);
process.exitCode = document && errors.length === 0 ? 0 : 1;
