// Package lint holds nothing but tests: they keep the shape of the module. Who
// may import whom is in lint_test.go, how large things may be and what the code
// may not do in shape_test.go, how that is measured in measure_test.go.
//
// A test that fails here says what to do. There is no list of exceptions.
package lint
