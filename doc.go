// Package volley is the root of Volley, a general-purpose serverless platform.
//
// It holds no code of its own, only the tests of what must be true of the whole
// repository. The platform is made of libraries that are each useful alone:
// package sprocket (parallel video pipelines), and package store (where their
// data lives). The program that wires them together is cmd/volley.
package volley
