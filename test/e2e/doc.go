// Package e2e tests floatip as its users meet it, on the rig of real components: the story that the demo tells, and
// what happens when two want the same address, when the webhook dies, and when it is away.
package e2e
