;; A matrix product whose rows are gathered: all convolutions of the page are calls of this one function.
;;
;; For each pixel and output channel:
;;     sum = bias[channel] + sum over taps and input channels of input[pixel + tap][input channel] * weight
;;     output[pixel][channel] = sum if sum > 0 else slope * sum
;;
;; Four pixels and eight channels at a time, in eight vectors of sums. All sizes and addresses are in bytes.
(module
  (memory (import "page" "memory") 1)
  (func (export "gatherMatmul")
    (param $pixels i32) (param $pixelsEnd i32) ;; table: four input addresses, four output addresses, and so on
    (param $taps i32) (param $tapsEnd i32)     ;; table: offsets from an input address
    (param $depth i32)                         ;; of the input channels of a pixel
    (param $weights i32)                       ;; float32 [output channel / 8][tap][input channel][8]
    (param $bias i32)                          ;; float32 [output channel]
    (param $width i32)                         ;; of the output channels of a pixel; a multiple of 32
    (param $slope f32)
    (local $channel i32) (local $pixel i32) (local $tap i32) (local $offset i32) (local $weight i32)
    (local $in0 i32) (local $in1 i32) (local $in2 i32) (local $in3 i32) (local $end i32)
    (local $x v128) (local $w0 v128) (local $w1 v128)
    (local $sum00 v128) (local $sum01 v128) (local $sum10 v128) (local $sum11 v128)
    (local $sum20 v128) (local $sum21 v128) (local $sum30 v128) (local $sum31 v128)

    (loop $channels
      (local.set $pixel (local.get $pixels))
      (loop $pixelGroups
        (local.set $w0 (v128.load (i32.add (local.get $bias) (local.get $channel))))
        (local.set $w1 (v128.load offset=16 (i32.add (local.get $bias) (local.get $channel))))
        (local.set $sum00 (local.get $w0)) (local.set $sum01 (local.get $w1))
        (local.set $sum10 (local.get $w0)) (local.set $sum11 (local.get $w1))
        (local.set $sum20 (local.get $w0)) (local.set $sum21 (local.get $w1))
        (local.set $sum30 (local.get $w0)) (local.set $sum31 (local.get $w1))
        (local.set $weight (local.get $weights))
        (local.set $tap (local.get $taps))
        (loop $allTaps
          (local.set $offset (i32.load (local.get $tap)))
          (local.set $in0 (i32.add (local.get $offset) (i32.load (local.get $pixel))))
          (local.set $in1 (i32.add (local.get $offset) (i32.load offset=4 (local.get $pixel))))
          (local.set $in2 (i32.add (local.get $offset) (i32.load offset=8 (local.get $pixel))))
          (local.set $in3 (i32.add (local.get $offset) (i32.load offset=12 (local.get $pixel))))
          (local.set $end (i32.add (local.get $in0) (local.get $depth)))
          (loop $inputChannels
            (local.set $w0 (v128.load (local.get $weight)))
            (local.set $w1 (v128.load offset=16 (local.get $weight)))
            (local.set $x (v128.load32_splat (local.get $in0)))
            (local.set $sum00 (f32x4.add (local.get $sum00) (f32x4.mul (local.get $x) (local.get $w0))))
            (local.set $sum01 (f32x4.add (local.get $sum01) (f32x4.mul (local.get $x) (local.get $w1))))
            (local.set $x (v128.load32_splat (local.get $in1)))
            (local.set $sum10 (f32x4.add (local.get $sum10) (f32x4.mul (local.get $x) (local.get $w0))))
            (local.set $sum11 (f32x4.add (local.get $sum11) (f32x4.mul (local.get $x) (local.get $w1))))
            (local.set $x (v128.load32_splat (local.get $in2)))
            (local.set $sum20 (f32x4.add (local.get $sum20) (f32x4.mul (local.get $x) (local.get $w0))))
            (local.set $sum21 (f32x4.add (local.get $sum21) (f32x4.mul (local.get $x) (local.get $w1))))
            (local.set $x (v128.load32_splat (local.get $in3)))
            (local.set $sum30 (f32x4.add (local.get $sum30) (f32x4.mul (local.get $x) (local.get $w0))))
            (local.set $sum31 (f32x4.add (local.get $sum31) (f32x4.mul (local.get $x) (local.get $w1))))
            (local.set $weight (i32.add (local.get $weight) (i32.const 32)))
            (local.set $in1 (i32.add (local.get $in1) (i32.const 4)))
            (local.set $in2 (i32.add (local.get $in2) (i32.const 4)))
            (local.set $in3 (i32.add (local.get $in3) (i32.const 4)))
            (br_if $inputChannels
              (i32.lt_u (local.tee $in0 (i32.add (local.get $in0) (i32.const 4))) (local.get $end))))
          (br_if $allTaps
            (i32.lt_u (local.tee $tap (i32.add (local.get $tap) (i32.const 4))) (local.get $tapsEnd))))
        (call $store (local.get $channel) (i32.load offset=16 (local.get $pixel))
          (local.get $sum00) (local.get $sum01) (local.get $slope))
        (call $store (local.get $channel) (i32.load offset=20 (local.get $pixel))
          (local.get $sum10) (local.get $sum11) (local.get $slope))
        (call $store (local.get $channel) (i32.load offset=24 (local.get $pixel))
          (local.get $sum20) (local.get $sum21) (local.get $slope))
        (call $store (local.get $channel) (i32.load offset=28 (local.get $pixel))
          (local.get $sum30) (local.get $sum31) (local.get $slope))
        (br_if $pixelGroups
          (i32.lt_u (local.tee $pixel (i32.add (local.get $pixel) (i32.const 32))) (local.get $pixelsEnd))))
      (local.set $weights (local.get $weight))
      (br_if $channels
        (i32.lt_u (local.tee $channel (i32.add (local.get $channel) (i32.const 32))) (local.get $width)))))

  (func $store (param $channel i32) (param $out i32) (param $sum0 v128) (param $sum1 v128) (param $slope f32)
    (local.set $out (i32.add (local.get $out) (local.get $channel)))
    (v128.store (local.get $out) (call $leaky (local.get $sum0) (f32x4.splat (local.get $slope))))
    (v128.store offset=16 (local.get $out) (call $leaky (local.get $sum1) (f32x4.splat (local.get $slope)))))

  (func $leaky (param $sum v128) (param $slope v128) (result v128)
    (v128.bitselect (local.get $sum) (f32x4.mul (local.get $sum) (local.get $slope))
      (f32x4.gt (local.get $sum) (f32x4.splat (f32.const 0))))))
