// Package docs is the project's pages. It has no code but the examples that
// the pages show, and the tests that keep the two the same.
package docs
