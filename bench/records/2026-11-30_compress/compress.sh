# compress.sh OUT: CartPole on two ranks that talk by sockets, three seeds with and without bfloat16
out=$1; mkdir -p $out
for seed in 1 2 3; do for how in float32 bf16; do
  [ -e $out/$how-$seed.jsonl ] && continue
  port=$((29700 + seed)); flag=""; [ $how = bf16 ] && { flag=--bf16-compress; port=$((port + 10)); }
  for rank in 0 1; do
    RANK=$rank WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port python -m surefoot train cartpole --num-steps 64 \
      --minibatch-size 256 --total-steps 100000 --seed $seed --eval-episodes 0 --quiet --run-dir $out/$how-$seed $flag &
  done; wait
  cp $out/$how-$seed/metrics.jsonl $out/$how-$seed.jsonl
done; done
