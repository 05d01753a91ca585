// Package cbttest is the conformance suite of [cbt.Tracker]. The test of a
// tracker is a few lines that open it and call [Run].
//
// The suite checks the laws and not the means: it never asks how a tracker
// knows. Where it cannot drive a tracker to a state, because [Subject] lacks
// the function for it, the check is skipped and the skip says which.
package cbttest
